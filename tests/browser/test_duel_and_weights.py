"""The button Take it of the duel writes where a run reads the numbers, or says that a link sets one of them."""

from __future__ import annotations

from typing import Any

import preference_pad
import pytest
from comfy_browser import FrontEnd
from duel_page import FILES, MAKE, Duel, learned

NUMBERS = ["weight_1", "weight_2", "weight_3", "kl_scale"]
WRAP = """([id, names]) => {
    const { subgraph, node: host } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
    const inner = subgraph.nodes.find((node) => node.type === 'PreferenceWeights')
    for (const name of names) {
        subgraph.addInput(name, 'FLOAT').connect(inner.inputs.find((input) => input.widget?.name === name), inner)
    }
    return host.id
}"""
LINK = """([id, name, value]) => {
    const node = app.graph.getNodeById(id), number = LiteGraph.createNode('PrimitiveFloat')
    app.graph.add(number)
    number.widgets[0].value = value
    number.connect(0, node, node.inputs.findIndex((input) => input.widget?.name === name))
}"""
SENT = """async () => Object.values((await app.graphToPrompt()).output)
    .find((node) => node.class_type === 'PreferenceWeights').inputs"""


def best() -> list[float]:
    preference = learned(3)["best"]
    return [*preference["weights"], preference["kl_scale"]]


def make(front: FrontEnd, **more: Any) -> tuple[Duel, Any]:
    """A view that knows a best preference, and the number of its Preference Weights, all of whose weights are equal."""
    node = front.page.evaluate(MAKE, [FILES[:3], learned(3) | more])
    preference_pad.Pad(front, node).set_number("kl_scale", 1.25)
    front.fit()
    duel = Duel(front)
    duel.wait("choose")
    return duel, node


def take(duel: Duel) -> str:
    """Press the button; returns what the view says."""
    duel.page.evaluate("() => document.querySelector('.diffusion-blend-duel [data-part=take]').click()")
    duel.front.settle()
    return duel.page.locator(".diffusion-blend-duel").inner_text()


def test_promoted_numbers_are_written_on_the_subgraphs_own_node(front: FrontEnd) -> None:
    duel, node = make(front)
    host = front.page.evaluate(WRAP, [node, NUMBERS])
    front.settle()
    duel.page.wait_for_function("() => !document.querySelector('.diffusion-blend-duel [data-part=take]').disabled")
    assert "Written into" in take(duel)
    assert preference_pad.read(front, host, *NUMBERS) == best()
    sent = front.page.evaluate(SENT)
    assert [sent[name] for name in NUMBERS] == best()


@pytest.mark.parametrize("name", ["weight_2", "kl_scale"])
def test_a_number_that_a_link_sets_leaves_all_as_they_are(front: FrontEnd, name: str) -> None:
    duel, node = make(front)
    front.page.evaluate(LINK, [node, name, 0.75])
    before = preference_pad.read(front, node, *NUMBERS)
    said = take(duel)
    assert f"{name} is set by its link" in said
    assert "Written" not in said
    assert preference_pad.read(front, node, *NUMBERS) == before


def test_a_link_that_gives_the_best_number_is_in_nobodys_way(front: FrontEnd) -> None:
    duel, node = make(front)
    front.page.evaluate(LINK, [node, "weight_2", best()[1]])
    assert "Written into" in take(duel)
    assert preference_pad.read(front, node, "weight_1", "weight_3", "kl_scale") == [best()[0], *best()[2:]]


def test_the_weights_go_to_their_loras_where_rows_have_moved(front: FrontEnd) -> None:
    moved = [FILES[2], FILES[0], FILES[1]]
    duel, node = make(front, files=moved)
    assert "Written into" in take(duel)
    expected = [best()[moved.index(file)] for file in FILES[:3]]
    assert preference_pad.read(front, node, *NUMBERS[:3]) == expected


def test_a_pair_of_other_loras_is_written_in_order_and_said_so(front: FrontEnd) -> None:
    duel, node = make(front, files=[FILES[0], FILES[1], "other.safetensors"])
    assert "in the order of its LoRAs" in take(duel)
    assert preference_pad.read(front, node, *NUMBERS) == best()


COPIES = """() => {
    const loader = app.graph.nodes.find((each) => each.type === 'LoadRewardLoRAs')
    const { subgraph, node: host } = app.graph.convertToSubgraph(new Set([loader]))
    const copy = LiteGraph.createNode(subgraph.id), second = LiteGraph.createNode('PreferenceWeights')
    for (const made of [copy, second]) app.graph.add(made)
    copy.connect(0, second, second.findInputSlot('reward_loras'))
    return second.id
}"""


def test_take_it_does_not_choose_between_the_copies_of_a_subgraph(front: FrontEnd) -> None:
    duel, node = make(front)
    second = front.page.evaluate(COPIES)
    front.settle()
    before = [preference_pad.read(front, each, *NUMBERS) for each in (node, second)]
    duel.page.wait_for_function("() => document.querySelector('.diffusion-blend-duel [data-part=take]').disabled")
    title = duel.page.locator(".diffusion-blend-duel [data-part=take]").get_attribute("title")
    assert title == "The copies of a subgraph have a Preference Weights each: use the output best"
    take(duel)
    assert [preference_pad.read(front, each, *NUMBERS) for each in (node, second)] == before
