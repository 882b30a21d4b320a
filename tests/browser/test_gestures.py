"""Pointer and keys over the pad that are not for the pad: panning the classic canvas, and deleting the node."""

from __future__ import annotations

import preference_pad
import pytest
from comfy_browser import NODES_2, FrontEnd
from make_server_models import LORAS

MIDDLE = (150, 92)
OFFSET = "() => [...app.canvas.ds.offset]"


@pytest.mark.parametrize("by", ["middle", "space"])
def test_panning_over_the_pad(front: FrontEnd, renderer: str, by: str) -> None:
    if renderer == NODES_2 and by == "middle":
        pytest.skip("Nodes 2.0 passes events to the canvas itself")
    pad = preference_pad.make(front, LORAS[:2])
    before = front.page.evaluate(OFFSET)
    ((x, y),) = pad.on_screen(MIDDLE)
    mouse = front.page.mouse
    if by == "space":
        front.page.mouse.click(5 + front.page.viewport_size["width"] // 2, 940)  # the canvas has the keys
        front.page.keyboard.down("Space")
    mouse.move(x, y)
    mouse.down(button="middle" if by == "middle" else "left")
    mouse.move(x + 60, y + 40, steps=4)
    mouse.up(button="middle" if by == "middle" else "left")
    if by == "space":
        front.page.keyboard.up("Space")
    front.settle()
    after = front.page.evaluate(OFFSET)
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([60, 40], abs=3)
    assert pad.numbers()["weight_1"] == 0.5


@pytest.mark.parametrize("key", ["Delete", "Backspace"])
def test_delete_with_the_pad_focused_keeps_the_node(front: FrontEnd, key: str) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", pad.node)
    pad.focus("weights")
    front.page.keyboard.press(key)
    front.settle()
    assert front.page.evaluate("(id) => Boolean(app.graph.getNodeById(id))", pad.node)
    title = "(id) => { const { pos } = app.graph.getNodeById(id); return app.canvasPosToClientPos([pos[0] + 150, pos[1] - 14]) }"
    front.page.mouse.click(*front.page.evaluate(title, pad.node))  # now the node is meant
    front.page.keyboard.press(key)
    front.settle()
    assert not front.page.evaluate("(id) => Boolean(app.graph.getNodeById(id))", pad.node)


def weights_of(numbers: dict[str, float]) -> list[float]:
    return [numbers[f"weight_{number}"] for number in (1, 2, 3)]


def test_double_click_resets(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.8, kl_scale=1.8)
    (weights, scale) = pad.on_screen((150, 120), (preference_pad.scale_x(2), preference_pad.TRACK_Y))
    front.page.mouse.dblclick(*weights)
    front.settle()
    assert weights_of(pad.numbers()) == [0.34, 0.33, 0.33]
    front.page.mouse.dblclick(*scale)
    front.settle()
    assert pad.numbers()["kl_scale"] == 1


def test_the_dot_snaps_to_corners_edges_and_the_centre(front: FrontEnd) -> None:
    """Within 6 units; the Alt key lets it go."""
    pad = preference_pad.make(front, LORAS)
    corners = preference_pad.CORNERS[3]
    centre = (sum(x for x, _ in corners) / 3, sum(y for _, y in corners) / 3)
    pad.drag((150, 120), (corners[2][0] + 1, corners[2][1] + 4))
    assert weights_of(pad.numbers()) == [0, 0, 1]
    pad.drag(corners[2], (centre[0] + 3, centre[1] - 3))
    assert sorted(weights_of(pad.numbers())) == [0.33, 0.33, 0.34]
    pad.drag(centre, (120, corners[0][1] - 4))  # near the lower edge
    assert weights_of(pad.numbers())[2] == 0
    front.page.keyboard.down("Alt")
    pad.drag((120, corners[0][1]), (120, corners[0][1] - 4))
    front.page.keyboard.up("Alt")
    assert weights_of(pad.numbers())[2] == pytest.approx(4 / 132, abs=0.011)


def test_presets_are_kept_in_the_workflow(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5, kl_scale=1.5)
    page = front.page

    def choose(entry: str) -> None:
        page.mouse.click(*pad.on_screen((150, 120))[0], button="right")
        page.locator(".litecontextmenu").get_by_text(entry, exact=True).click()
        front.settle()

    choose("Save this preference\u2026")
    page.get_by_role("dialog").get_by_role("textbox").fill("soft")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "(id) => app.graph.getNodeById(id).properties.diffusion_blend_presets?.length === 1", arg=pad.node
    )
    choose("Equal weights")
    assert weights_of(pad.numbers()) == [0.34, 0.33, 0.33]
    front.load(front.workflow())  # as a saved file
    front.fit()
    pad.wait("look.shown")
    choose("Use soft")
    assert weights_of(pad.numbers()) == [0.2, 0.3, 0.5]
    assert pad.numbers()["kl_scale"] == 1.5
    choose("Delete soft")
    assert page.evaluate("(id) => app.graph.getNodeById(id).properties.diffusion_blend_presets", pad.node) == []


def test_run_when_i_let_go(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    front.page.evaluate(
        "() => { window.runs = 0; window.realQueue = app.queuePrompt; app.queuePrompt = async () => { runs += 1 } }"
    )
    try:
        pad.drag((150, 120), (130, 120))
        assert front.page.evaluate("() => runs") == 0
        front.page.mouse.click(*pad.on_screen((150, 120))[0], button="right")
        front.page.locator(".litecontextmenu").get_by_text("Run when I let go", exact=True).click()
        pad.drag((130, 120), (160, 120))
        assert front.page.evaluate("() => runs") == 1
    finally:
        front.page.evaluate("() => { app.queuePrompt = realQueue }")


def test_a_locked_weight_stays_while_the_others_move(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    corners = preference_pad.CORNERS[3]

    def toggle() -> None:
        front.page.mouse.click(*pad.on_screen((150, 60))[0], button="right")
        front.page.locator(".litecontextmenu").get_by_text(f"Lock {LORAS[0].removesuffix('.safetensors')}").click()
        front.settle()

    toggle()
    lock = """(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad')
        .element.querySelector('[data-part=lock]') !== null"""
    front.page.wait_for_function(lock, arg=pad.node)
    pad.drag(pad.look()["weights"], corners[1])
    assert weights_of(pad.numbers()) == [0.2, 0.8, 0]
    pad.drag(pad.look()["weights"], corners[0])  # the locked adapter's corner: the others keep their proportions
    assert weights_of(pad.numbers()) == [0.2, 0.8, 0]
    pad.focus("weights")
    front.page.keyboard.press("Home")
    front.settle()
    assert weights_of(pad.numbers()) == [0.2, 0.4, 0.4]
    front.load(front.workflow())  # kept in the workflow
    front.fit()
    pad.wait("look.shown")
    front.page.wait_for_function(lock, arg=pad.node)
    toggle()
    pad.drag(pad.look()["weights"], corners[0])
    assert weights_of(pad.numbers()) == [1, 0, 0]
