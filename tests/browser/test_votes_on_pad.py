"""The pad shows what the votes taught, and remembered pictures can be voted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comfy_browser import FrontEnd
from diffusion_blend.preference_learning.landscape import pad_mixtures
from duel_page import FILES, MAKE, NODE, Duel, learned, load
from preference_pad import Pad

PANEL = ".diffusion-blend-compare"
CELLS = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const ring = pad.querySelector('[data-part=votes-best]')
    const middle = (part) => {
        const points = part.getAttribute('points')?.split(' ').map((point) => point.split(',').map(Number))
        if (points) return [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length)
        const [x, y, width, height] = ['x', 'y', 'width', 'height'].map((name) => Number(part.getAttribute(name)))
        return [x + width / 2, y + height / 2]
    }
    const parts = [...pad.querySelectorAll('[data-part=shading] > :not(circle)')]
    return {
        ring: ring && ['cx', 'cy'].map((name) => Number(ring.getAttribute(name))),
        cells: parts.map((part) => [...middle(part), Number(part.getAttribute('fill-opacity'))]),
        dots: [...pad.querySelectorAll('[data-part=shading] > circle')].map((dot) => Number(dot.getAttribute('r'))),
    }
}"""
AT = """async (places) => {
    const { weightsAt } = await import('/extensions/diffusion-blend/pad/coordinates.js')
    const { CORNERS } = await import('/extensions/diffusion-blend/pad/layout.js')
    return places.map(([corners, point]) => weightsAt(CORNERS[corners], point))
}"""
REMEMBER = """async (id) => {
    const { remember } = await import('/extensions/diffusion-blend/pad/remembered.js')
    const { keyOfNode } = await import('/extensions/diffusion-blend/pad/node_ids.js')
    const picture = (colour) => {
        const canvas = Object.assign(document.createElement('canvas'), { width: 32, height: 32 })
        const context = canvas.getContext('2d')
        context.fillStyle = colour
        context.fillRect(0, 0, 32, 32)
        return canvas.toDataURL()
    }
    const made = [['#a00', [1, 0, 0]], ['#0a0', [0, 0.25, 0.75]], ['#00a', [0.5, 0.5, 0]]]
    remember(keyOfNode(app.graph.getNodeById(id)), made.map(([colour, weights]) => ({
        thumbnail: picture(colour), picture: picture(colour), names: null, weights, klScale: 1.2, seeds: [] })))
}"""


def shading(front: FrontEnd, node: Any, count: int) -> dict[str, Any]:
    front.page.wait_for_function(f"([id, count]) => ({CELLS})(id).cells.length === count", arg=[node, count])
    return front.page.evaluate(CELLS, node)


def choose(front: FrontEnd, node: Any, entry: str) -> None:
    """Click an entry of the pad's menu."""
    x, y = Pad(front, node).on_screen((150, 200))[0]
    front.page.mouse.click(x, y, button="right")
    front.page.locator(".litecontextmenu .litemenu-entry", has_text=entry).first.click()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_pad_is_shaded_as_the_votes_say(front: FrontEnd, count: int) -> None:
    """Each cell stands where the pad would choose its mixture; the best mixture is the darkest."""
    duel = learned(count)
    node = front.page.evaluate(MAKE, [FILES[:count], duel])
    shown = shading(front, node, len(duel["points"]))
    rows = np.array(duel["points"])
    assert rows[:, :count] == pytest.approx(pad_mixtures(count), abs=5.1e-4)
    places = [[count, cell[:2]] for cell in shown["cells"]]
    assert np.array(front.page.evaluate(AT, places)) == pytest.approx(rows[:, :count], abs=0.004)
    opacities = [cell[2] for cell in shown["cells"]]
    assert rows[np.argmax(opacities), count] == 1 and min(opacities) < 0.1 < 0.5 < max(opacities)
    assert shown["dots"] == pytest.approx(2 * (1 - rows[:, count + 1]), abs=1e-3)
    choose(front, node, "Shade what the votes say")
    shading(front, node, 0)
    assert front.workflow()["nodes"][1]["properties"]["diffusion_blend_votes_hidden"] is True
    choose(front, node, "Shade what the votes say")
    shading(front, node, len(duel["points"]))


def test_remembered_pictures_can_be_voted_on(front: FrontEnd) -> None:
    """Votes on any two pictures enter the duel's votes; the next pair counts them."""
    duel: Duel = load(front)
    page = front.page
    node = page.evaluate(f"() => ({NODE})('PreferenceWeights').id")
    page.evaluate(REMEMBER, node)
    duel.press("1")
    shading(front, node, len(pad_mixtures(3)))
    front.fit()
    choose(front, node, "Vote on two of these pictures")
    panel = page.locator(PANEL)
    pictures = panel.locator("[data-part=compare-picture]")
    assert [pictures.nth(i).get_attribute("title") for i in range(3)] == [
        "0.5 0.5 0 kl 1.2",
        "0 0.25 0.75 kl 1.2",
        "1 0 0 kl 1.2",
    ]
    assert panel.locator("[data-part=compare-1]").is_disabled()
    pictures.nth(0).click()
    pictures.nth(1).click()
    page.keyboard.press("2")
    assert duel.read().splitlines()[-1] == "0.5 0.5 0 kl 1.2 < 0 0.25 0.75 kl 1.2"
    pictures.nth(2).click()
    pictures.nth(1).click()
    panel.locator("[data-part=compare-1]").click()
    assert duel.outcomes == "><>"
    page.keyboard.press("Backspace")
    assert duel.outcomes == "><>" and page.evaluate(f"() => Boolean(({NODE})('PreferenceDuelView'))")
    page.keyboard.press("Escape")
    assert panel.count() == 0
    duel.wait("stale")
    duel.part("run").click()
    duel.wait("choose")
    duel.part("undo").click()
    assert duel.outcomes == "><"
