"""The pad remembers: images stand where their preference was, are shown large and while dragging, and give their numbers back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_browser import FrontEnd
from comfy_server import CHECKOUT
from PIL import Image
from preference_pad import CORNERS, SHORT, SHORTEN, Pad
from workflow_sources import TITLES

IMAGES = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    return [...pad.querySelectorAll('[data-part=remembered] rect')].map((box) =>
        ['x', 'y', 'width'].map((name) => Number(box.getAttribute(name)))).map(([x, y, side]) => [x + side / 2, y + side / 2])
}"""
NAMES_ABOVE_IMAGES = """(id) => {
    const pad = app.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const painted = [...pad.querySelectorAll('[data-part=remembered], [data-part=label]')].map((part) => part.dataset.part)
    return painted.lastIndexOf('remembered') < painted.indexOf('label')
}"""
PANEL = """() => {
    const panel = document.querySelector('.diffusion-blend-pictures')
    if (!panel || panel.style.display === 'none') return null
    const images = [...panel.querySelectorAll('img')]
    return { title: panel.firstChild.textContent, opacities: images.map((image) => Number(image.style.opacity)),
             widths: images.map((image) => image.naturalWidth),
             captions: [...panel.querySelectorAll('figure')].map((figure) => figure.textContent) }
}"""
SEED = "() => app.graph.nodes.find((node) => node.type === 'BlendedKSampler').widgets.find((w) => w.name === 'seed')"
STORE = "/extensions/diffusion-blend/pad/remembered.js"
SWEEP = """() => {
    const type = (name) => app.graph.nodes.find((node) => node.type === name)
    const sweep = LiteGraph.createNode('PreferenceSweep')
    app.graph.add(sweep)
    sweep.widgets.find((w) => w.name === 'divisions').value = 2
    type('LoadRewardLoRAs').connect(0, sweep, sweep.findInputSlot('reward_loras'))
    type('PreferenceWeights').connect(0, sweep, sweep.findInputSlot('preference_start'))
    sweep.connect(0, type('BlendedKSampler'), type('BlendedKSampler').findInputSlot('preference'))
}"""

FIND = """const type = (name) => app.graph.nodes.find((node) => node.type === name)
    const input = (node, name) => node.inputs.findIndex((each) => each.name === name || each.widget?.name === name)
    const add = (name) => { const node = LiteGraph.createNode(name); app.graph.add(node); return node }
    const sampler = type('BlendedKSampler'), weights = type('PreferenceWeights'), loader = type('LoadRewardLoRAs')
"""
PASSES = f"""() => {{
    {FIND}
    const again = add('BlendedKSampler'), own = add('PreferenceWeights')
    for (const [i, {{ name, link }}] of sampler.inputs.entries()) {{
        const from = link == null ? null : app.graph.getLink(link)
        if (from) app.graph.getNodeById(from.origin_id).connect(from.origin_slot, again, input(again, name))
    }}
    for (const name of ['steps', 'denoise']) again.widgets.find((w) => w.name === name).value = name === 'steps' ? 2 : 0.5
    own.widgets.find((w) => w.name === 'weight_1').value = 0
    own.widgets.find((w) => w.name === 'weight_2').value = 0
    own.widgets.find((w) => w.name === 'weight_3').value = 1
    loader.connect(0, own, input(own, 'reward_loras'))
    own.connect(0, again, input(again, 'preference'))
    sampler.connect(0, again, input(again, 'latent_image'))
    again.connect(0, type('VAEDecode'), 0)
    return own.id
}}"""
DUEL = f"""() => {{
    {FIND}
    const duel = add('PreferenceDuel')
    loader.connect(0, duel, input(duel, 'reward_loras'))
    weights.connect(0, duel, input(duel, 'start'))
    duel.connect(0, sampler, input(sampler, 'preference'))
}}"""
SCHEDULE = f"""() => {{
    {FIND}
    const schedule = add('PreferenceSchedule')
    weights.connect(0, schedule, input(schedule, 'preference_start'))
    weights.connect(0, schedule, input(schedule, 'preference_end'))
    schedule.connect(0, sampler, input(sampler, 'preference'))
}}"""
SEED_FROM = f"""([name, seed]) => {{
    {FIND}
    const source = add(name)
    source.connect(0, sampler, input(sampler, 'seed'))
    source.widgets.find((w) => w.name === 'value').value = seed
    return source.id
}}"""
REMEMBERED = """async ([id, store]) => {
    const ids = await import('/extensions/diffusion-blend/pad/node_ids.js')
    const { rememberedOf } = await import(store)
    return rememberedOf(ids.keyOfNode(app.graph.getNodeById(id))).map(({ weights, klScale }) => [...weights, klScale])
}"""
SET_FILE = """([number, file]) => {
    const widgets = app.graph.nodes.find((node) => node.type === 'LoadRewardLoRAs').widgets
    const widget = widgets.find((w) => w.name === `lora_${number}`)
    const before = widget.value
    widget.value = file
    return before
}"""


@pytest.fixture
def pad(front: FrontEnd) -> Iterator[Pad]:
    """The first template with short runs; its pad remembers nothing at the end."""
    front.open_file(
        json.loads((CHECKOUT / "workflows" / f"{TITLES['try_it_no_downloads']}.json").read_text()), "memory"
    )
    front.page.evaluate(SHORTEN, SHORT)
    node = front.page.evaluate("() => app.graph.nodes.find((node) => node.type === 'PreferenceWeights').id")
    pad = Pad(front, node)
    pad.wait("look.shown && look.labels.length === 3")
    front.page.wait_for_timeout(300)
    yield pad
    front.page.evaluate(
        "async ([id, store]) => { const ids = await import('/extensions/diffusion-blend/pad/node_ids.js');"
        " (await import(store)).forgetAll(ids.keyOfNode(app.graph.getNodeById(id))) }",
        [node, STORE],
    )


def run(pad: Pad, images: int) -> list[list[float]]:
    """Press Run, and wait until the pad has this many images; returns their places, the oldest first."""
    page = pad.front.page
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(f"([id, count]) => ({IMAGES})(id).length === count", arg=[pad.node, images], timeout=240_000)
    return page.evaluate(IMAGES, pad.node)


def panel(pad: Pad) -> dict[str, Any]:
    pad.front.page.wait_for_function(f"() => ({PANEL})()?.widths.every(Boolean)")
    return pad.front.page.evaluate(PANEL)


def shares(pad: Pad) -> list[float]:
    numbers = pad.numbers()
    return [numbers[f"weight_{number}"] for number in (1, 2, 3)]


def test_images_come_back_with_their_preference_and_seed(front: FrontEnd, pad: Pad) -> None:
    page = front.page
    page.evaluate(f"() => {{ ({SEED})().value = 11 }}")
    start = pad.look()["weights"]
    (first,) = run(pad, 1)
    assert first == pytest.approx(start, abs=1)
    pad.drag(start, CORNERS[3][0])
    page.evaluate(f"() => {{ ({SEED})().value = 12 }}")
    assert run(pad, 2)[1] == pytest.approx(CORNERS[3][0], abs=0.1)
    assert page.evaluate(NAMES_ABOVE_IMAGES, pad.node)

    page.mouse.move(*pad.on_screen((first[0], first[1] + 6))[0])
    shown = panel(pad)
    assert "click to take" in shown["title"]
    assert shown["opacities"] == [1]
    assert all(f"{name} 0.3" in shown["captions"][0] for name in ("brightness", "warmth", "colourfulness"))
    page.mouse.click(*pad.on_screen((first[0], first[1] + 6))[0])
    front.settle()
    assert shares(pad) == [0.34, 0.33, 0.33]
    assert page.evaluate(f"() => ({SEED})().value") == 11

    x, y = pad.on_screen(first)[0]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(*pad.on_screen((CORNERS[3][0][0] + 25, CORNERS[3][0][1] - 12))[0], steps=5)
    near = panel(pad)
    page.mouse.up()
    assert "not a preview" in near["title"]
    assert near["captions"][0].startswith("brightness 1.00"), "the nearest one comes first"
    assert near["opacities"] == sorted(near["opacities"], reverse=True)
    assert 0 < near["opacities"][1] < near["opacities"][0] < 1
    assert page.evaluate(PANEL) is None, "gone when the dot is let go"
    assert len(page.evaluate(IMAGES, pad.node)) == 2


def test_a_press_that_moves_drags_the_dot_and_takes_nothing_back(front: FrontEnd, pad: Pad) -> None:
    run(pad, 1)
    start = pad.look()["weights"]
    pad.drag(start, CORNERS[3][1])
    pad.drag((start[0], start[1] + 6), CORNERS[3][2])  # the press is on the image
    assert shares(pad) == [0, 0, 1]


def test_images_are_gone_with_their_adapter_and_come_again(front: FrontEnd, pad: Pad) -> None:
    """An image shows what its adapters made: on a pad without them it has no place. Undo keeps the images."""
    (place,) = run(pad, 1)
    loader = "app.graph.nodes.find((node) => node.type === 'LoadRewardLoRAs').widgets.find((w) => w.name === 'on_3')"
    front.page.evaluate(f"() => {{ {loader}.value = false }}")
    front.page.wait_for_function(f"(id) => ({IMAGES})(id).length === 0", arg=pad.node)
    front.page.evaluate(f"() => {{ {loader}.value = true }}")
    front.page.wait_for_function(f"(id) => ({IMAGES})(id).length === 1", arg=pad.node)
    assert front.page.evaluate(IMAGES, pad.node)[0] == pytest.approx(place)


def test_a_sweep_fills_the_pad(front: FrontEnd, pad: Pad) -> None:
    """Two divisions over three adapters: the corners and the middles of the edges."""
    front.page.evaluate(SWEEP)
    front.settle()
    places = run(pad, 6)
    middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for i, a in enumerate(CORNERS[3]) for b in CORNERS[3][i + 1 :]]
    assert sorted(map(tuple, places)) == [pytest.approx(place, abs=0.1) for place in sorted([*CORNERS[3], *middles])]


def set_weights(pad: Pad, *values: float) -> None:
    for number, value in enumerate(values, start=1):
        pad.set_number(f"weight_{number}", value)


def test_each_pad_of_two_passes_has_the_image_at_its_own_preference(front: FrontEnd, pad: Pad) -> None:
    set_weights(pad, 1, 0, 0)
    own = Pad(front, front.page.evaluate(PASSES))
    own.wait("look.labels.length === 3")
    assert run(pad, 1) == [pytest.approx(CORNERS[3][0], abs=0.1)]
    front.page.wait_for_function(f"(id) => ({IMAGES})(id).length === 1", arg=own.node)
    assert front.page.evaluate(IMAGES, own.node) == [pytest.approx(CORNERS[3][2], abs=0.1)]


def test_the_two_images_of_a_duel_stand_at_their_own_preferences(front: FrontEnd, pad: Pad) -> None:
    set_weights(pad, 0, 0.2, 0.8)
    front.page.evaluate(DUEL)
    known = runs(front)
    run(pad, 2)
    (made,) = runs(front) - known
    outputs = front.server.get_json("/history")[made]["outputs"].values()
    (file, *_) = next(output["images"] for output in outputs if output.get("images"))
    (blends,) = json.loads(Image.open(front.server.image(file)).info["diffusion_blend"]).values()
    wanted = [[*(adapter["weight"] for adapter in blend["adapters"]), blend["kl_scale"]] for blend in blends]
    assert len(wanted) == 2
    assert wanted[0] != wanted[1]
    assert front.page.evaluate(REMEMBERED, [pad.node, STORE]) == [pytest.approx(each) for each in wanted]


def test_images_of_a_schedule_follow_their_adapters(front: FrontEnd, pad: Pad) -> None:
    """Only the prompt of the run has their names."""
    set_weights(pad, 1, 0, 0)
    front.page.evaluate(SCHEDULE)
    assert run(pad, 1) == [pytest.approx(CORNERS[3][0], abs=0.1)]
    second = front.page.evaluate(SET_FILE, [2, "None"])
    first = front.page.evaluate(SET_FILE, [1, second])
    front.page.evaluate(SET_FILE, [2, first])
    at = f"(id) => {{ const [place] = ({IMAGES})(id); return place && Math.abs(place[0] - {CORNERS[3][1][0]}) < 0.1 }}"
    front.page.wait_for_function(at, arg=pad.node)
    front.page.evaluate(SET_FILE, [2, "None"])
    front.page.wait_for_function(f"(id) => ({IMAGES})(id).length === 0", arg=pad.node)


@pytest.mark.parametrize("kind", ["PrimitiveInt", "PrimitiveNode"])
def test_a_seed_that_another_node_gives_comes_back_there(front: FrontEnd, pad: Pad, kind: str) -> None:
    source = front.page.evaluate(SEED_FROM, [kind, 31])
    value = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'value')"
    ((x, y),) = run(pad, 1)
    front.page.evaluate(f"(id) => {{ ({value})(id).value = 77 }}", source)
    front.page.mouse.click(*pad.on_screen((x, y + 11))[0])  # beside the dot
    front.settle()
    assert front.page.evaluate(f"(id) => ({value})(id).value", source) == 31


def test_two_tabs_with_the_same_workflow_share_no_images(front: FrontEnd) -> None:
    """A template that is opened twice has the same id twice. A run's images go to the tab that queued the run."""
    page = front.page
    text = (CHECKOUT / "workflows" / f"{TITLES['try_it_no_downloads']}.json").read_text()
    pads, tabs = [], []
    for _ in range(2):
        page.evaluate(
            "async (workflow) => { await app.loadGraphData(workflow) }", json.loads(text)
        )  # as templates open
        page.evaluate(SHORTEN, SHORT)
        front.settle()
        front.remember()
        pads.append(Pad(front, page.evaluate("() => app.graph.nodes.find((n) => n.type === 'PreferenceWeights').id")))
        tabs.append(page.evaluate("() => app.extensionManager.workflow.activeWorkflow.path"))
        pads[-1].wait("look.labels.length === 3")
    assert tabs[0] != tabs[1]
    page.evaluate(f"() => {{ ({SEED})().value = 21 }}")
    run(pads[1], 1)
    show(front, tabs[0])
    assert settled_images(pads[0]) == []
    page.evaluate(f"() => {{ ({SEED})().value = 22 }}")
    known = runs(front)
    page.get_by_test_id("queue-button").first.click()
    while not runs(front) - known:
        front.pause(20)
    show(front, tabs[1])  # while the run goes on
    front.server.wait((runs(front) - known).pop(), 240)
    assert len(settled_images(pads[1])) == 1
    show(front, tabs[0])
    page.wait_for_function(f"(id) => ({IMAGES})(id).length === 1", arg=pads[0].node)


def runs(front: FrontEnd) -> set[str]:
    """The ids of all runs that the server has begun."""
    return {entry[1] for entry in front.server.get_json("/queue")["queue_running"]} | set(
        front.server.get_json("/history")
    )


def show(front: FrontEnd, path: str) -> None:
    """Click the tab of a workflow."""
    name = path.rpartition("/")[2].removesuffix(".json")
    front.page.locator(".workflow-tab, .workflow-label").get_by_text(name, exact=True).first.click()
    front.page.wait_for_function("(path) => app.extensionManager.workflow.activeWorkflow.path === path", arg=path)
    front.settle()


def settled_images(pad: Pad) -> list[list[float]]:
    pad.wait("look.labels.length === 3")
    pad.front.pause(2500)  # longer than the time between two refreshes
    return pad.front.page.evaluate(IMAGES, pad.node)


def test_at_most_200_are_kept(front: FrontEnd, pad: Pad) -> None:
    kept = front.page.evaluate(
        """async (store) => {
            const { remember, rememberedOf, forgetAll } = await import(store)
            const image = (i) => ({ thumbnail: '', picture: '', names: null, weights: [1], klScale: i, seeds: [] })
            remember('many', Array.from({ length: 150 }, (_, i) => image(i)))
            remember('many', Array.from({ length: 70 }, (_, i) => image(150 + i)))
            const kept = rememberedOf('many').map(({ klScale }) => klScale)
            forgetAll('many')
            return kept
        }""",
        STORE,
    )
    assert kept == list(range(20, 220))
