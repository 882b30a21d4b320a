"""Moving a row of Load Reward LoRAs takes along every number that belongs to its adapter, wherever that number is."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_browser import FrontEnd
from lora_rows import click, move
from make_server_models import LORAS
from preference_pad import NAMES, build, has, loader, node, read, set_mode, weights

WEIGHTS = [f"weight_{i}" for i in range(1, 6)]


def remove(front: FrontEnd, number: Any, row: int) -> None:
    click(front, number, row, "remove")


def test_weights_that_are_connected_through_the_sampler_only(front: FrontEnd) -> None:
    ids = build(
        front,
        {"loader": loader(*LORAS), "pad": weights(0.2, 0.3, 0.5), "sampler": node("BlendedKSampler")},
        "loader > sampler.reward_loras",
        "pad > sampler.preference",
    )
    has(front, ids["pad"], NAMES)
    move(front, ids["loader"], 0, 2)
    has(front, ids["pad"], [*NAMES[1:], NAMES[0]])
    assert read(front, ids["pad"], *WEIGHTS[:3]) == [0.3, 0.5, 0.2]


STEPS_OF_UNDO = 4
"""Two changes. On a busy machine the front end may keep a step for a node's new size, too."""


def chain(pads: int) -> tuple[dict[str, Any], list[str]]:
    """Two loaders in a chain, whose adapters are blended by one Preference Weights or by two."""
    nodes = {"first": loader(*LORAS), "second": loader(*LORAS[:2]), "sampler": node("BlendedKSampler")}
    links = ["first > second.reward_loras", "second > sampler.reward_loras", "last > sampler.preference"]
    if pads == 1:
        return nodes | {"last": weights(0.1, 0.2, 0.3, 0.35, 0.05)}, [*links, "second > last.reward_loras"]
    return nodes | {"before": weights(0.1, 0.2, 0.3), "last": weights(0.35, 0.05)}, [*links, "before > last.preference"]


def test_weights_of_later_loaders_move_up_too_and_undo_brings_all_back(front: FrontEnd) -> None:
    nodes, links = chain(1)
    ids = build(front, nodes, *links)
    has(front, ids["last"], [*NAMES, *NAMES[:2]])
    preset = {name: i / 10 for i, name in enumerate(WEIGHTS, start=1)}
    front.page.evaluate(
        """([id, numbers]) => {
            const node = app.graph.getNodeById(id)
            node.setProperty('diffusion_blend_locked', 'weight_4')
            node.setProperty('diffusion_blend_presets', [{ name: 'mine', numbers }])
        }""",
        [ids["last"], preset],
    )
    front.remember()
    remove(front, ids["first"], 1)
    has(front, ids["last"], [NAMES[0], NAMES[2], *NAMES[:2]])
    assert read(front, ids["last"], *WEIGHTS) == [0.1, 0.3, 0.35, 0.05, 0]
    locked, presets = front.page.evaluate(
        "(id) => { const { properties: p } = app.graph.getNodeById(id); return"
        " [p.diffusion_blend_locked, p.diffusion_blend_presets] }",
        ids["last"],
    )
    assert locked == "weight_3"
    assert [presets[0]["numbers"][name] for name in WEIGHTS] == [0.1, 0.3, 0.4, 0.5, 0]
    move(front, ids["second"], 0, 1)
    assert read(front, ids["last"], *WEIGHTS) == [0.1, 0.3, 0.05, 0.35, 0]
    for _ in range(STEPS_OF_UNDO):
        if read(front, ids["last"], *WEIGHTS) == [0.1, 0.2, 0.3, 0.35, 0.05]:
            break
        front.press_and_restore("Control+z")
    has(front, ids["last"], [*NAMES, *NAMES[:2]])
    assert read(front, ids["last"], *WEIGHTS) == [0.1, 0.2, 0.3, 0.35, 0.05]


def test_each_weights_node_of_a_chain_follows_its_own_loader(front: FrontEnd) -> None:
    nodes, links = chain(2)
    ids = build(front, nodes, *links)
    has(front, ids["before"], NAMES)
    remove(front, ids["first"], 0)
    assert read(front, ids["before"], *WEIGHTS[:3]) == [0.2, 0.3, 0]
    assert read(front, ids["last"], *WEIGHTS[:3]) == [0.35, 0.05, 0]


def test_weights_of_a_loader_that_is_muted_for_now(front: FrontEnd) -> None:
    ids = build(
        front,
        {"loader": loader(*LORAS), "pad": weights(0.2, 0.3, 0.5)},
        "loader > pad.reward_loras",
    )
    set_mode(front, ids["loader"], 2)
    remove(front, ids["loader"], 0)
    assert read(front, ids["pad"], *WEIGHTS[:3]) == [0.3, 0.5, 0]


def test_weights_in_a_subgraph(front: FrontEnd) -> None:
    ids = build(
        front,
        {"loader": loader(*LORAS), "pad": weights(0.2, 0.3, 0.5), "sampler": node("BlendedKSampler")},
        "loader > sampler.reward_loras",
        "pad > sampler.preference",
    )
    front.page.evaluate(
        "(ids) => app.graph.convertToSubgraph(new Set(ids.map((id) => app.graph.getNodeById(id))))",
        [ids["pad"], ids["sampler"]],
    )
    front.settle()
    front.fit()
    remove(front, ids["loader"], 0)
    sent = next(item for item in front.prompt().values() if item["class_type"] == "PreferenceWeights")["inputs"]
    assert [sent[name] for name in WEIGHTS[:3]] == [0.3, 0.5, 0]


def test_noise_scales_of_the_msdda_sampler(front: FrontEnd) -> None:
    etas = [f"eta_{i}" for i in range(1, 5)]
    ids = build(
        front,
        {
            "first": loader(*LORAS[:2]),
            "second": loader(*LORAS[:2]),
            "sampler": node("MSDDASampler", eta_1=0.5, eta_2=0.6, eta_3=0.7, eta_4=0.8),
        },
        "first > second.reward_loras",
        "second > sampler.reward_loras",
    )
    move(front, ids["second"], 1, 0)
    assert read(front, ids["sampler"], *etas) == [0.5, 0.6, 0.8, 0.7]
    remove(front, ids["first"], 0)
    assert read(front, ids["sampler"], *etas) == [0.6, 0.8, 0.7, 1]


@pytest.mark.parametrize("row", [0, 1])
def test_a_number_that_a_link_sets_keeps_the_rows_as_they_are(front: FrontEnd, row: int) -> None:
    ids = build(
        front,
        {
            "loader": loader(*LORAS),
            "other": weights(0.4, 0.6),
            "pad": weights(0.2, 0.3, 0.5),
            "number": node("PrimitiveFloat", value=0.2),
        },
        "loader > other.reward_loras",
        "loader > pad.reward_loras",
        "number > pad.weight_2",
    )
    front.remember()
    steps = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    before = front.page.evaluate(steps)
    remove(front, ids["loader"], row)
    toast = front.page.locator(".p-toast-message").filter(has_text="weight_2 of pad")
    toast.first.wait_for(state="visible")
    assert read(front, ids["loader"], "lora_1", "lora_2", "lora_3") == list(LORAS)
    assert read(front, ids["other"], "weight_1", "weight_2") == [0.4, 0.6]
    assert front.page.evaluate(steps) == before
    front.page.locator(".p-toast-close-button").first.click()
    toast.first.wait_for(state="hidden")
    remove(front, ids["loader"], 2)  # the number of the link stays
    assert read(front, ids["pad"], "weight_1", "weight_3") == [0.2, 0]
