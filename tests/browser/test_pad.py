"""The preference pad in both renderers: the numbers are the truth, the pad shows them and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import comfy_browser
import preference_pad
import pytest
from comfy_browser import SQUASHED_MS, FrontEnd
from comfy_server import ComfyServer
from make_server_models import LORAS
from playwright.sync_api import Browser
from preference_pad import CORNERS, MIDDLE, NAMES, QUARTER, TENTH, TRACK_Y, mean, near, scale_x, weights_of

FOUR = (*LORAS, LORAS[0])


def test_drag_on_the_line_sets_numbers_and_prompt(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    pad.drag(MIDDLE, QUARTER)
    assert weights_of(pad.numbers()) == pytest.approx([0.25, 0.75, 0, 0], abs=0.011)
    sent = pad.sent()
    assert [sent[f"weight_{number}"] for number in (1, 2, 3, 4)] == weights_of(pad.numbers())
    assert "preference_pad" not in sent
    assert near(pad.look()["weights"], mean(CORNERS[2], weights_of(pad.numbers())[:2]))


@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.0, 0.5, 0.5), (1.0, 0.0, 0.0)])
def test_drag_in_the_triangle(front: FrontEnd, weights: tuple[float, ...]) -> None:
    """Barycentric: the weights are those whose mean of the corners is the point."""
    pad = preference_pad.make(front, LORAS)
    pad.drag(mean(CORNERS[3], [0.5, 0.5, 0.0]), mean(CORNERS[3], list(weights)))
    assert weights_of(pad.numbers()) == pytest.approx([*weights, 0], abs=0.016)
    assert sum(weights_of(pad.numbers())) == pytest.approx(1, abs=1e-9)


def test_drag_in_the_square(front: FrontEnd) -> None:
    """Bilinear: at (u, v) the corners count (1-u)(1-v), u(1-v), uv, (1-u)v."""
    pad = preference_pad.make(front, FOUR)
    u, v = 0.3, 0.6
    pad.drag((150, 94), (84 + 132 * u, 28 + 132 * v))
    wanted = [(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v]
    assert weights_of(pad.numbers()) == pytest.approx(wanted, abs=0.026)
    assert sum(weights_of(pad.numbers())) == pytest.approx(1, abs=1e-9)


def test_drag_at_a_reduced_zoom(front: FrontEnd) -> None:
    """Where the front end shows less of a node, too."""
    pad = preference_pad.make(front, LORAS[:2])
    front.page.evaluate(
        """(id) => {
            const { ds } = app.canvas, { pos } = app.graph.getNodeById(id)
            ds.scale = 0.3
            ds.offset[0] = 700 / ds.scale - pos[0]
            ds.offset[1] = 400 / ds.scale - pos[1]
            app.canvas.setDirty(true, true)
        }""",
        pad.node,
    )
    front.settle()
    front.pause(500)
    pad.drag(MIDDLE, QUARTER)
    assert weights_of(pad.numbers()) == pytest.approx([0.25, 0.75, 0, 0], abs=0.03)


def test_two_pads_of_one_loader_are_independent_and_keep_their_adapters(front: FrontEnd) -> None:
    """Each has its own numbers. When the loader's rows change places, both follow."""
    pad = preference_pad.make(front, LORAS[:2])
    other = front.page.evaluate(
        """(id) => {
            const other = LiteGraph.createNode('PreferenceWeights'), loader = app.graph.getNodeById(id)
            app.graph.add(other)
            other.pos = [960, 100]
            loader.connect(0, other, other.findInputSlot('reward_loras'))
            return other.id
        }""",
        pad.loader,
    )
    second = preference_pad.Pad(front, other)
    for name, value in zip(preference_pad.NUMBERS, (0.5, 0.5, 0, 0, 1), strict=True):
        second.set_number(name, value)
    front.settle()
    front.fit()
    second.wait(f"look.shown && look.labels.join() === '{','.join(NAMES[:2])}'")
    front.pause(500)
    pad.drag(MIDDLE, QUARTER)
    second.drag(MIDDLE, TENTH)
    assert weights_of(pad.numbers())[0] == pytest.approx(0.25, abs=0.011)
    assert weights_of(second.numbers())[0] == pytest.approx(0.9, abs=0.011)
    front.page.evaluate(
        """(id) => {
            const loader = app.graph.getNodeById(id), { element } = loader.widgets.find((w) => w.name === 'lora_rows')
            element.querySelector('[data-part=remove]').click()
        }""",
        pad.loader,
    )
    assert weights_of(pad.numbers())[:2] == pytest.approx([0.75, 0], abs=0.011)
    assert weights_of(second.numbers())[:2] == pytest.approx([0.1, 0], abs=0.011)


def test_a_cross_adapter_is_no_corner(front: FrontEnd) -> None:
    """Its gate follows from the weights of the others, which keep their places; an ordinary file in its slot is a corner."""
    pad = preference_pad.make(front, LORAS, weight_1=0.5, weight_2=0.5)

    def choose(slot: int, file: str) -> None:
        front.page.evaluate(
            "([id, name, file]) => { app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = file }",
            [pad.loader, f"lora_{slot}", file],
        )

    assert pad.look()["labels"] == NAMES
    choose(3, "pair.cross.safetensors")
    pad.wait(f"look.labels.join() === '{','.join(NAMES[:2])}' && look.message === ''")
    marks = "[...document.querySelectorAll('[data-part=colour]')].map((mark) => mark.textContent)"
    front.page.wait_for_function(f"{marks}.join() === ',,\u00d7'")  # nor has its row a corner's colour
    pad.drag(MIDDLE, QUARTER)
    assert weights_of(pad.numbers()) == pytest.approx([0.25, 0.75, 0, 0], abs=0.011)
    pad.set_number("weight_3", 0.5)  # it belongs to the cross adapter's slot, which counts as empty
    pad.wait("look.message.startsWith('weight_3 counts as 0')")
    choose(3, LORAS[2])
    pad.wait(f"look.labels.join() === '{','.join(NAMES)}'")


def test_drag_outside_stays_on_the_border(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    pad.drag((150, 120), (150, 185))  # below the middle of the base
    assert weights_of(pad.numbers()) == pytest.approx([0.5, 0.5, 0, 0], abs=0.011)


def test_kl_handle_sets_the_scale(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    pad.drag((scale_x(1), TRACK_Y), (scale_x(1.8), TRACK_Y))
    assert pad.numbers()["kl_scale"] == pytest.approx(1.8, abs=0.051)
    assert pad.sent()["kl_scale"] == pad.numbers()["kl_scale"]
    assert weights_of(pad.numbers()) == [0.5, 0.5, 0, 0], "the weights moved too"


def test_numbers_move_the_pad(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    pad.set_number("weight_1", 0.1)
    pad.set_number("weight_2", 0.3)
    pad.set_number("weight_3", 0.6)
    pad.set_number("kl_scale", -0.5)
    x, y = mean(CORNERS[3], [0.1, 0.3, 0.6])
    pad.wait(f"Math.hypot(look.weights[0] - {x}, look.weights[1] - {y}) < 0.01")
    pad.wait(f"Math.abs(look.kl[0] - {scale_x(-0.5)}) < 0.01")
    pad.set_number("kl_scale", 4.0)  # outside the usual range: the track shows the whole one
    pad.wait(f"Math.abs(look.kl[0] - {scale_x(4, -5, 5)}) < 0.01")


def test_showing_changes_no_number(front: FrontEnd) -> None:
    """Weights that are no point of the square, and whose sum is not 1, stay as they are."""
    values = {"weight_1": 0.4, "weight_2": 0.0, "weight_3": 0.4, "weight_4": 0.7}
    pad = preference_pad.make(front, FOUR, **values)
    front.page.wait_for_timeout(500)
    assert pad.numbers() == {**values, "kl_scale": 1}
    assert near(pad.look()["weights"], mean(CORNERS[4], list(values.values())))


def test_labels_follow_the_loader(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    assert pad.look()["labels"] == NAMES[:2]
    front.page.evaluate("([id, file]) => { app.graph.getNodeById(id).widgets[4].value = file }", [pad.loader, LORAS[2]])
    pad.wait(f"look.labels.join() === '{','.join(NAMES)}'")
    front.page.evaluate("(id) => app.graph.getNodeById(id).disconnectInput(0)", pad.node)
    front.page.evaluate(
        "(id) => { const node = app.graph.getNodeById(id); node.disconnectInput(node.findInputSlot('reward_loras')) }",
        pad.node,
    )
    pad.wait("look.labels[0] === 'LoRA 1'")


def test_undo_and_redo(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.remember()
    pad.drag(MIDDLE, QUARTER)
    pad.drag(QUARTER, TENTH)
    assert pad.numbers()["weight_1"] == pytest.approx(0.9, abs=0.011)
    front.press_and_restore("Control+z")
    pad.wait("Math.abs(look.weights[0] - 210) < 3")
    assert pad.numbers()["weight_1"] == pytest.approx(0.25, abs=0.011)
    assert front.differs_from_tracked() == []
    front.press_and_restore("Control+z")
    pad.wait("Math.abs(look.weights[0] - 150) < 0.01")
    front.press_and_restore("Control+y")
    pad.wait("Math.abs(look.weights[0] - 210) < 3")
    pad.drag(QUARTER, MIDDLE)  # the pad of the restored node works
    assert pad.numbers()["weight_1"] == pytest.approx(0.5, abs=0.011)


def test_undo_after_opening_a_file(front: FrontEnd) -> None:
    """Nodes 2.0 then keeps the component of the node that undo replaces."""
    pad = preference_pad.make(front, LORAS[:2])
    front.open_file(front.workflow())
    pad.wait("look.shown")
    pad.drag(MIDDLE, QUARTER)
    assert pad.numbers()["weight_1"] == pytest.approx(0.25, abs=0.011)
    front.press_and_restore("Control+z")
    pad.wait("look.shown && Math.abs(look.weights[0] - 150) < 0.01")
    assert front.page.evaluate("() => document.querySelectorAll('.diffusion-blend-pad').length") == 1
    pad.drag(MIDDLE, TENTH)
    assert pad.numbers()["weight_1"] == pytest.approx(0.9, abs=0.011)
    front.press_and_restore("Control+z")
    front.press_and_restore("Control+y")
    pad.wait("look.shown && Math.abs(look.weights[0] - 54) < 3")


def test_an_idle_pad_and_its_rows_draw_nothing(front: FrontEnd) -> None:
    """The refresh every two seconds only reads the graph."""
    preference_pad.make(front, LORAS)
    front.page.mouse.move(5, 400)
    front.pause(3000)
    changes = front.page.evaluate(
        """async () => {
            let changes = 0
            const observer = new MutationObserver((records) => { changes += records.length })
            const parts = [...document.querySelectorAll('.diffusion-blend-pad, .diffusion-blend-rows')]
            for (const part of parts) observer.observe(part, { attributes: true, childList: true, subtree: true })
            const watched = async (act) => { changes = 0; await act(); return changes }
            const wait = (time) => new Promise((done) => setTimeout(done, time))
            const idle = await watched(() => wait(4500))
            app.graph.nodes.find((n) => n.type === 'PreferenceWeights').widgets[0].value = 0.2
            return [parts.length, idle, await watched(() => wait(4500)) > 0]
        }"""
    )
    assert changes == [2, 0, True]


def test_the_pad_of_a_removed_node_is_inert(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    inert = front.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id), { element } = node.widgets.find((w) => w.name === 'preference_pad')
            const before = element.inert
            app.graph.remove(node)
            return [before, element.inert]
        }""",
        pad.node,
    )
    assert inert == [False, True]


def test_keyboard(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.remember()
    pad.focus("weights")
    front.page.keyboard.press("ArrowRight")
    assert weights_of(pad.numbers()) == [0.49, 0.51, 0, 0]
    front.page.keyboard.press("Shift+ArrowLeft")
    assert weights_of(pad.numbers()) == [0.59, 0.41, 0, 0]
    front.page.keyboard.press("2")
    assert weights_of(pad.numbers()) == [0, 1, 0, 0]
    front.page.keyboard.press("Home")
    assert weights_of(pad.numbers()) == [0.5, 0.5, 0, 0]
    pad.focus("kl")
    for scale in (1.05, 1.1):
        front.page.keyboard.press("ArrowRight")
        assert pad.numbers()["kl_scale"] == scale
        front.pause(SQUASHED_MS)
    front.press_and_restore("Control+z")  # each key is one step of undo
    assert pad.numbers()["kl_scale"] == 1.05


def test_save_and_load(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    pad.drag((150, 120), mean(CORNERS[3], [0.1, 0.2, 0.7]))
    numbers = pad.numbers()
    saved = json.loads(json.dumps(front.workflow()))
    (stored,) = [node for node in saved["nodes"] if node["type"] == "PreferenceWeights"]
    assert stored["widgets_values"] == [*numbers.values(), 0, 0, 0, 0], "the pad itself must not be stored"
    front.page.evaluate("() => app.graph.clear()")
    front.load(saved)
    assert pad.numbers() == numbers
    pad.wait(f"Math.hypot(look.weights[0] - {mean(CORNERS[3], weights_of(numbers)[:3])[0]}) < 0.01")


def test_copy_and_paste(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2], weight_1=0.2, weight_2=0.8)
    front.page.evaluate(
        """(id) => {
            app.canvas.selectNode(app.graph.getNodeById(id))
            app.canvas.copyToClipboard()
            app.canvas.graph_mouse = [560, 560]
            app.canvas.pasteFromClipboard()
        }""",
        pad.node,
    )
    front.settle()
    copies = front.page.evaluate("() => app.graph.nodes.filter((n) => n.type === 'PreferenceWeights').map((n) => n.id)")
    (copy_id,) = set(copies) - {pad.node}
    front.page.evaluate("(id) => { app.graph.getNodeById(id).pos = [1000, 100] }", copy_id)
    front.fit()
    copy = preference_pad.Pad(front, copy_id)
    copy.wait("look.shown")
    front.page.wait_for_timeout(300)
    assert copy.numbers() == pad.numbers()
    copy.drag(MIDDLE, MIDDLE)
    assert weights_of(copy.numbers()) == [0.5, 0.5, 0, 0]
    assert weights_of(pad.numbers()) == [0.2, 0.8, 0, 0]


def test_linked_numbers_are_shown_and_not_written(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id), number = LiteGraph.createNode('PrimitiveFloat')
            app.graph.add(number)
            number.widgets[0].value = 0.25
            number.connect(0, node, node.inputs.findIndex((input) => input.widget?.name === 'weight_1'))
        }""",
        pad.node,
    )
    pad.wait("look.message === 'weight_1 is set by its link'")
    assert near(pad.look()["weights"], mean(CORNERS[2], [0.25, 0.5]))
    before = pad.numbers()
    pad.drag((110, 92), QUARTER)
    assert pad.numbers() == before
    assert isinstance(pad.sent()["weight_1"], list)
    pad.drag((scale_x(1), TRACK_Y), (scale_x(0.5), TRACK_Y))  # the KL scale has no link
    assert pad.numbers()["kl_scale"] == pytest.approx(0.5, abs=0.051)


def test_survives_a_reload_of_the_page(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    pad.drag(MIDDLE, QUARTER)
    numbers = pad.numbers()
    front.page.wait_for_timeout(1500)  # the front end keeps its draft a moment after a change
    front.open()
    front.page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'PreferenceWeights')")
    node = front.page.evaluate("() => app.graph.nodes.find((node) => node.type === 'PreferenceWeights').id")
    again = preference_pad.Pad(front, node)
    assert again.numbers() == numbers
    again.wait("Math.abs(look.weights[0] - 210) < 3")


@pytest.fixture
def without_script(browser: Browser, server: ComfyServer, renderer: str) -> Iterator[FrontEnd]:
    """The front end of a person whose browser did not get our script."""
    with comfy_browser.front_end(browser, server, renderer, without="**/{preference_pad,lora_rows}.js*") as front:
        yield front


def test_workflows_run_without_the_script(front: FrontEnd, without_script: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2], weight_1=0.2, weight_2=0.8, kl_scale=1.3)
    saved = front.workflow()
    without_script.load(saved)
    widgets = without_script.page.evaluate("(id) => app.graph.getNodeById(id).widgets.map((w) => w.name)", pad.node)
    assert widgets == [*preference_pad.NUMBERS, *(f"weight_{number}" for number in (5, 6, 7, 8))]
    assert without_script.prompt() == front.prompt()


def test_touch(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.remember()
    (x0, y), (x1, _) = pad.on_screen(MIDDLE, QUARTER)
    session = front.page.context.new_cdp_session(front.page)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x0, "y": y}]})
    for step in (0.3, 0.7, 1.0):
        point = {"x": x0 + step * (x1 - x0), "y": y}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    front.settle()
    assert weights_of(pad.numbers()) == pytest.approx([0.25, 0.75, 0, 0], abs=0.011)
    front.pause(SQUASHED_MS)
    front.press_and_restore("Control+z")
    assert weights_of(pad.numbers()) == [0.5, 0.5, 0, 0]
