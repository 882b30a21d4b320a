"""How the pad looks: text that is whole and can be read, in every theme, and the meaning of its words and colours."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import comfy_browser
import preference_pad
import pytest
from comfy_browser import FrontEnd
from comfy_server import ComfyServer
from make_server_models import LORAS
from PIL import Image
from playwright.sync_api import Browser

LONG = tuple(f"{letter}ong name of 15.safetensors" for letter in "lLtT")
THEMES = ("dark", "light", "solarized", "arc", "nord", "github")
BOXES = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const box = (part) => { const b = part.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height] }
    return {
        texts: [...pad.querySelectorAll('text')].map((text) => [text.textContent, ...box(text)]),
        corners: [...pad.querySelectorAll('[data-part=corner]')].map(box),
        view: pad.querySelector('svg').getAttribute('viewBox').split(' ').map(Number),
    }
}"""
LABELS = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const box = (part) => { const b = part.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] }
    return [...pad.querySelectorAll('[data-part=label]')].map((label) => {
        const [name, number] = label.querySelectorAll('tspan')
        return [name.textContent, box(name), box(number)]
    })
}"""
# The adapters' colours by Okabe and Ito (2008), which colour-blind people can distinguish.
OKABE_ITO = [(86, 180, 233), (230, 159, 0), (0, 158, 115)]
MARKS = """(id) => {
    const node = app.graph.getNodeById(id)
    const shown = document.querySelector(`[data-node-id="${id}"]`)
    return [1, 2, 3].map((i) => {
        const widget = node.widgets.find((w) => w.name === `weight_${i}`)
        const label = [...(shown?.querySelectorAll('[data-testid=widget-layout-field-label]') ?? [])]
            .find((each) => each.textContent.trim() === widget.label)
        if (label) return getComputedStyle(label).borderLeftColor.match(/\\d+/g).map(Number)
        return app.canvasPosToClientPos([node.pos[0] + node.size[0] - 8, node.pos[1] + (widget.last_y ?? widget.y) + 10])
    })
}"""
ROW_COLOURS = """(id) => {
    const rows = app.graph.getNodeById(id).widgets.find((w) => w.name === 'lora_rows').element
    const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number)
    return [...rows.querySelectorAll('button, input[type=number], [data-part=grip]')].map((part) => {
        const style = getComputedStyle(part)
        return [part.dataset.part, style.opacity, numbers(style.color), numbers(style.backgroundColor)]
    })
}"""
COLOURS = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number)
    return [numbers(getComputedStyle(pad).backgroundColor),
            [...pad.querySelectorAll('text')].map((text) => numbers(getComputedStyle(text).fill))]
}"""


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def luminance(colour: list[float]) -> float:
    """WCAG 2.2's relative luminance, written from its text."""
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_text_is_clipped_or_covered(front: FrontEnd, count: int) -> None:
    """Long names and a message; the dot may stand in any corner."""
    pad = preference_pad.make(front, LONG[:count], weight_1=0.0, weight_2=0.0)
    found = front.page.evaluate(BOXES, pad.node)
    _, _, width, height = found["view"]
    texts: list[list[Any]] = found["texts"]
    assert len(texts) >= count + 5
    for text, *box in texts:
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height, text
    for i, (text, *box) in enumerate(texts):
        assert not [other for other, *place in texts[:i] if overlap(box, place)], text
    for left, top, right, bottom in found["corners"]:
        x, y = (left + right) / 2, (top + bottom) / 2
        handle = [x - 8, y - 8, x + 8, y + 8]  # the dot's radius is 9; a square about it reaches a little further
        assert not [text for text, *box in texts if overlap(box, handle)]


@pytest.mark.parametrize("count", [2, 4])
def test_a_name_in_any_script_stands_beside_its_number(front: FrontEnd, count: int) -> None:
    """Names from right to left, emoji of several characters, 200 letters, and a line break."""
    names = ("\u0627\u0644\u062c\u0645\u0627\u0644", "\U0001f469\u200d\U0001f3a8" * 30, "m" * 200, "two\nlines")
    pad = preference_pad.make(front, tuple(f"{name}.safetensors" for name in names[:count]), weight_1=0.3, weight_2=0.7)
    labels = front.page.evaluate(LABELS, pad.node)
    assert len(labels) == count
    for text, name, number in labels:
        assert name[2] <= number[0] + 0.5, f"the number lies on the name: {text!r}"
        assert "\ufffd" not in text
        assert not text.removesuffix("\u2026").endswith("\u200d"), "an emoji is cut in two"


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read_in_every_theme(front: FrontEnd, theme: str) -> None:
    pad = preference_pad.make(
        front, ("None", *LORAS[1:3]), weight_1=0.0, weight_2=0.0
    )  # with a grey name and a warning
    setting = "(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    front.page.evaluate(setting, theme)
    try:
        front.pause(700)
        background, colours = front.page.evaluate(COLOURS, pad.node)
        assert len(colours) >= 8
        assert min(contrast(colour, background) for colour in colours) >= 4.5
        front.page.evaluate(
            "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'on_3').value = false }", pad.loader
        )
        front.pause(1500)
        rows = front.page.evaluate(ROW_COLOURS, pad.loader)
        assert len(rows) >= 9
        assert [row for row in rows if row[1] != "1" or contrast(row[2], row[3]) < 4.5] == []
    finally:
        front.page.evaluate(setting, "dark")


def test_names_stand_at_their_corners_whole_where_they_fit(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LONG)
    shown = [text for text, *_ in front.page.evaluate(BOXES, pad.node)["texts"]]
    for name in LONG:
        assert any(text.startswith(name.removesuffix(".safetensors")) for text in shown), shown


@pytest.fixture
def chinese(browser: Browser, server: ComfyServer, renderer: str) -> Iterator[FrontEnd]:
    server.post("/settings", {"Comfy.Locale": "zh"})
    try:
        with comfy_browser.front_end(browser, server, renderer) as front:
            yield front
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})


def test_the_pads_words_are_translated(chinese: FrontEnd) -> None:
    pad = preference_pad.make(chinese, LORAS[:2], weight_1=0.0, weight_2=0.0)
    shown = [text for text, *_ in chinese.page.evaluate(BOXES, pad.node)["texts"]]
    assert {"相反", "夸张", "0 基础", "1 混合", "KL 1"} <= set(shown)
    assert any(text.startswith("所有权重都是 0") for text in shown)
    label = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').label"
    assert chinese.page.evaluate(label, pad.node) == "偏好面板"


def test_each_number_has_its_adapters_colour(front: FrontEnd, renderer: str) -> None:
    front.open()  # the front end gives a new node the state of the widgets of an earlier one with its number
    front.page.evaluate("() => app.graph.clear()")
    front.errors.clear()
    pad = preference_pad.make(front, LORAS)
    wanted = [list(colour) for colour in OKABE_ITO]
    front.page.mouse.move(5, 400)
    marks: list[Any] = []
    for _ in range(20):  # Nodes 2.0 makes its elements a moment later, and the pad looks for them every two seconds
        marks = front.page.evaluate(MARKS, pad.node)
        if renderer == comfy_browser.CLASSIC:
            with Image.open(BytesIO(front.page.screenshot())) as picture:
                pixels = picture.convert("RGB")
            marks = [list(pixels.getpixel((round(x), round(y)))) for x, y in marks]
        if marks == wanted:
            break
        front.pause(500)
    assert marks == wanted


def test_links_have_colours_of_their_own(front: FrontEnd) -> None:
    preference_pad.make(front, LORAS)
    colours = front.page.evaluate(
        """() => ['REWARD_LORAS', 'PREFERENCE'].map((type) => [
            app.canvas.default_connection_color_byType[type],
            getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim()])"""
    )
    assert all(classic and classic == nodes_2 for classic, nodes_2 in colours), colours
    assert colours[0] != colours[1]


def test_links_keep_their_colours_when_a_theme_loads_before_a_loader(front: FrontEnd) -> None:
    """A theme replaces the tables. The next node with such a slot puts the colours back, also without a pad."""
    colour = front.page.evaluate(
        """() => {
            const tables = [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]
            tables.forEach((table) => delete table.REWARD_LORAS)
            app.graph.add(LiteGraph.createNode('LoadRewardLoRAs'))
            return tables.map((table) => table.REWARD_LORAS)
        }"""
    )
    assert all(colour), colour
