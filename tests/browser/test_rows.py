"""The rows of Load Reward LoRAs: they show and write its widgets, and weights travel with their adapters."""

from __future__ import annotations

import preference_pad
import pytest
from comfy_browser import FrontEnd
from lora_rows import ELEMENT, click, move, place
from make_server_models import LORAS
from PIL import Image
from preference_pad import NAMES

SHOWN = f"""(id) => [...{ELEMENT}.querySelectorAll('[data-part=row]')].map((row) => [
    row.querySelector('[data-part=name]').textContent, row.querySelector('[data-part=on]').checked,
    Number(row.querySelector('[data-part=strength]').value)])"""
VALUES = """(id) => Object.fromEntries(app.graph.getNodeById(id).widgets
    .filter((w) => /^(lora|strength|on)_\\d/.test(w.name)).map((w) => [w.name, w.value]))"""

HOST_WEIGHT = "app.graph.getNodeById(id).widgets.find((w) => w.name === `weight_${i + 1}`)"


def test_a_row_for_each_lora(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    assert front.page.evaluate(SHOWN, pad.loader) == [[name, True, 1] for name in NAMES]
    shown = front.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.filter((w) => !w.hidden).map((w) => w.name)", pad.loader
    )
    assert shown == ["scale", "lora_rows"]


def test_switching_off_keeps_the_corner_and_undo_brings_it_back(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    front.remember()
    click(front, pad.loader, 1, "on")
    assert front.page.evaluate(VALUES, pad.loader)["on_2"] is False
    pad.wait("look.message === 'weight_2 counts as 0: faithful is switched off'")
    x, y = preference_pad.CORNERS[3][0]
    wanted = x + (preference_pad.CORNERS[3][2][0] - x) * 0.5 / 0.7
    pad.wait(f"Math.abs(look.weights[0] - {wanted}) < 0.01 && look.weights[1] < {y}")
    assert front.prompt()[str(pad.loader)]["inputs"]["on_2"] is False
    front.press_and_restore("Control+z")
    pad.wait("look.message === ''")


def test_reordering_takes_the_weights_along(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    move(front, pad.loader, 0, 2)
    assert [name for name, *_ in front.page.evaluate(SHOWN, pad.loader)] == [*NAMES[1:], NAMES[0]]
    numbers = pad.numbers()
    assert [numbers[f"weight_{i}"] for i in (1, 2, 3)] == [0.3, 0.5, 0.2]


KEPT = """(id) => {
    const { properties } = app.graph.getNodeById(id)
    return [properties.diffusion_blend_locked, properties.diffusion_blend_presets[0].numbers]
}"""


def test_the_lock_and_the_presets_go_along_too(front: FrontEnd) -> None:
    """They belong to adapters, as the weights do."""
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    preset = {"weight_1": 0.6, "weight_2": 0.1, "weight_3": 0.3, "kl_scale": 1.5}
    front.page.evaluate(
        """([id, numbers]) => {
            const node = app.graph.getNodeById(id)
            node.setProperty('diffusion_blend_locked', 'weight_2')
            node.setProperty('diffusion_blend_presets', [{ name: 'mine', numbers }])
        }""",
        [pad.node, preset],
    )
    click(front, pad.loader, 0, "remove")
    locked, numbers = front.page.evaluate(KEPT, pad.node)
    assert locked == "weight_1"
    assert [numbers[name] for name in ("weight_1", "weight_2", "weight_3", "kl_scale")] == [0.1, 0.3, 0, 1.5]
    click(front, pad.loader, 0, "remove")
    assert front.page.evaluate(KEPT, pad.node)[0] == "", "the locked adapter is gone"


def test_promoted_weights_travel_on_the_subgraphs_own_node(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    host = front.page.evaluate(
        """([id, names]) => {
            const { subgraph, node: host } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
            const inner = subgraph.nodes.find((node) => node.type === 'PreferenceWeights')
            for (const name of names) {
                subgraph.addInput(name, 'FLOAT').connect(inner.inputs.find((input) => input.widget?.name === name), inner)
            }
            return host.id
        }""",
        [pad.node, ["weight_1", "weight_2", "weight_3"]],
    )
    front.settle()
    set_all = "([id, values]) => values.forEach((value, i) => {" + HOST_WEIGHT + ".value = value })"
    front.page.evaluate(set_all, [host, [0.7, 0.1, 0.2]])
    front.pause(2500)  # the pad's refresh
    click(front, pad.loader, 0, "remove")
    assert front.page.evaluate(f"(id) => [0, 1, 2].map((i) => {HOST_WEIGHT}.value)", host) == [0.1, 0.2, 0]


def test_removing_closes_the_gap_and_adding_makes_a_row(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS, weight_1=0.2, weight_2=0.3, weight_3=0.5)
    click(front, pad.loader, 0, "remove")
    assert [name for name, *_ in front.page.evaluate(SHOWN, pad.loader)] == NAMES[1:]
    numbers = pad.numbers()
    assert [numbers[f"weight_{i}"] for i in (1, 2, 3)] == [0.3, 0.5, 0]
    click(front, pad.loader, 0, "add")
    assert [name for name, *_ in front.page.evaluate(SHOWN, pad.loader)] == [*NAMES[1:], "Choose a LoRA"]


STRENGTH = f"(id) => {ELEMENT}.querySelector('[data-part=strength]').value"


@pytest.mark.parametrize(
    ("typed", "wanted"), [("", 0.5), ("e", 0.5), ("-", 0.5), ("0", 0), ("1.5", 1.5), ("25", 20), ("-1e9", -20)]
)
def test_a_strength_is_a_number_within_its_bounds(front: FrontEnd, typed: str, wanted: float) -> None:
    """An empty field, or text that is no number, would read as 0 and switch the adapter off."""
    pad = preference_pad.make(front, LORAS[:1])
    field = front.page.locator(".diffusion-blend-rows [data-part=strength]").first

    def write(text: str) -> None:
        field.click(click_count=3)
        front.page.keyboard.press("Delete")
        front.page.keyboard.type(text)
        front.page.keyboard.press("Tab")
        front.settle()

    write("0.5")
    for _ in range(2):  # the second time, the bound is already the value
        write(typed)
        assert front.page.evaluate(VALUES, pad.loader)["strength_1"] == wanted
        assert float(front.page.evaluate(STRENGTH, pad.loader)) == wanted


def test_choosing_uses_the_hosts_list_with_its_search(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:1])
    click(front, pad.loader, 0, "name")
    menu = front.page.locator(".litecontextmenu")
    menu.get_by_text(LORAS[2], exact=True).click()
    front.settle()
    assert front.page.evaluate(VALUES, pad.loader)["lora_1"] == LORAS[2]
    pad.wait(f"look.labels[0] === '{NAMES[2]}'")


@pytest.mark.parametrize("count", [5, 6, 8])
def test_more_than_four_make_a_regular_polygon(front: FrontEnd, count: int) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.page.evaluate(
        """([loader, node, files]) => files.forEach((file, i) => {
            const of = (id, name) => app.graph.getNodeById(id).widgets.find((w) => w.name === `${name}_${i + 1}`)
            of(loader, 'lora').value = file
            of(node, 'weight').value = i + 1 === files.length ? 1 : 0
        })""",
        [pad.loader, pad.node, [LORAS[i % 3] for i in range(count)]],
    )
    pad.wait(f"look.labels.length === {count}")
    front.fit()
    front.pause(400)
    start = tuple(pad.look()["weights"])
    pad.drag(start, (150, 94))  # from the last corner to the middle: equal shares
    sent = pad.sent()
    assert [sent[f"weight_{i}"] for i in range(1, count + 1)] == pytest.approx([1 / count] * count, abs=0.03)


def test_a_picture_beside_the_file_is_shown_and_large_under_the_pointer(front: FrontEnd) -> None:
    """Only the pictures of listed LoRAs are served."""
    folder = front.server.base / "models" / "loras"
    picture = folder / LORAS[1].replace(".safetensors", ".png")
    Image.new("RGB", (40, 30), (200, 30, 60)).save(picture)
    Image.new("RGB", (8, 8)).save(folder / "secret.png")
    try:
        front.page.evaluate("() => app.refreshComboInNodes()")
        pad = preference_pad.make(front, LORAS)
        found = f"""(id) => [...{ELEMENT}.querySelectorAll('[data-part=row]')].map((row) =>
            row.querySelector('[data-part=picture]')?.naturalWidth ?? 0)"""
        front.page.wait_for_function(f"(id) => ({found})(id).some(Boolean)", arg=pad.loader)
        assert front.page.evaluate(found, pad.loader)[:3] == [0, 40, 0]
        front.page.mouse.move(*place(front, pad.loader, 0, "picture"))
        panel = front.page.locator(".diffusion-blend-pictures")
        panel.wait_for(state="visible")
        assert "faithful" in panel.inner_text()
        front.page.mouse.move(5, 400)
        panel.wait_for(state="hidden")
        status = """async (names) => Promise.all(names.map(async (file) =>
            (await fetch(`/diffusion_blend/preview?${new URLSearchParams({ file })}`)).status))"""
        wrong = ["secret.safetensors", "../loras/secret.safetensors", LORAS[0], ""]
        assert front.page.evaluate(status, [LORAS[1], *wrong]) == [200, 404, 404, 404, 404]
        front.errors.clear()  # the browser notes each 404 that this test asked for
    finally:
        picture.unlink()
        (folder / "secret.png").unlink()
