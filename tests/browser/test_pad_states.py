"""What the pad shows where something is missing, muted, empty or linked."""

from __future__ import annotations

import preference_pad
import pytest
from comfy_browser import FrontEnd
from make_server_models import LORAS
from preference_pad import CORNERS, MIDDLE, NAMES, QUARTER, mean, near, weights_of

CHAIN = """([loaderId, nodeId, files]) => {
    const loader = app.graph.getNodeById(loaderId), node = app.graph.getNodeById(nodeId)
    const first = LiteGraph.createNode('LoadRewardLoRAs'), before = LiteGraph.createNode('PreferenceWeights')
    app.graph.add(first); app.graph.add(before)
    first.pos = [100, 700]; before.pos = [560, 700]
    files.forEach((file, i) => { first.widgets[2 * i].value = file })
    first.connect(0, loader, loader.findInputSlot('reward_loras'))
    first.connect(0, before, before.findInputSlot('reward_loras'))
    return before.id
}"""


def test_each_node_of_a_chain_names_its_own_loaders_adapters(front: FrontEnd) -> None:
    """With one node the weights go through both loaders; with two each belongs to its loader."""
    pad = preference_pad.make(front, (LORAS[1], LORAS[2]))
    before = preference_pad.Pad(front, front.page.evaluate(CHAIN, [pad.loader, pad.node, list(LORAS[:2])]))
    pad.wait(f"look.labels.join() === '{','.join([*NAMES[:2], NAMES[1], NAMES[2]])}'")
    front.page.evaluate(
        """([from, to]) => {
            const node = app.graph.getNodeById(to)
            app.graph.getNodeById(from).connect(0, node, node.findInputSlot('preference'))
        }""",
        [before.node, pad.node],
    )
    pad.wait(f"look.labels.join() === '{','.join(NAMES[1:])}'")
    before.wait(f"look.labels.join() === '{','.join(NAMES[:2])}'")


def test_muted_nodes_of_a_chain_are_left_out_as_in_a_run(front: FrontEnd) -> None:
    """What stands before a muted node does not reach the run, and the rest of the chain runs."""
    pad = preference_pad.make(front, (LORAS[1], LORAS[2]))
    before = front.page.evaluate(CHAIN, [pad.loader, pad.node, list(LORAS[:2])])
    front.page.evaluate(
        """([from, to]) => {
            const node = app.graph.getNodeById(to)
            app.graph.getNodeById(from).connect(0, node, node.findInputSlot('preference'))
            app.graph.getNodeById(from).mode = 2
        }""",
        [before, pad.node],
    )
    assert "preference" not in pad.sent()
    pad.wait(f"look.labels.join() === '{','.join([*NAMES[:2], NAMES[1], NAMES[2]])}' && !look.isProblem")
    front.page.evaluate(
        "(id) => { const node = app.graph.getNodeById(id); node.getInputNode(node.findInputSlot('reward_loras')).mode = 2 }",
        pad.loader,
    )
    assert "reward_loras" not in front.prompt()[str(pad.loader)]["inputs"]
    pad.wait(f"look.labels.join() === '{','.join(NAMES[1:])}' && look.message === ''")
    front.page.evaluate("(id) => { app.graph.getNodeById(id).mode = 4 }", pad.loader)  # bypassed: the muted one is next
    pad.wait("look.isProblem && look.message.includes('is muted')")


def test_an_empty_slot_keeps_its_corner_and_counts_as_0(front: FrontEnd) -> None:
    """The numbers of the others keep their proportions, in the picture as in a run."""
    pad = preference_pad.make(front, ("None", *LORAS[1:]), weight_1=0.5, weight_2=0.2, weight_3=0.3)
    look = pad.look()
    assert look["labels"] == ["no LoRA", *NAMES[1:]]
    assert look["message"] == "weight_1 counts as 0: there is no LoRA 1"
    assert not look["isProblem"]
    assert near(look["weights"], mean(CORNERS[3], [0, 0.4, 0.6]))
    pad.drag(look["weights"], mean(CORNERS[3], [0.5, 0.25, 0.25]))
    assert weights_of(pad.numbers()) == pytest.approx([0, 0.5, 0.5, 0], abs=0.016)
    assert pad.look()["message"] == ""


def test_a_weight_without_adapter_is_pointed_out_and_dragged_away(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2], weight_4=0.3)
    pad.wait("look.message === 'weight_4 counts as 0: there is no LoRA 4'")
    pad.drag(MIDDLE, QUARTER)
    assert pad.numbers()["weight_4"] == 0
    assert pad.look()["message"] == ""


def test_one_adapter(front: FrontEnd) -> None:
    """There is nothing to choose; a click sets the weight of the missing second one to 0."""
    pad = preference_pad.make(front, LORAS[:1])
    look = pad.look()
    assert look["labels"] == NAMES[:1]
    assert look["message"] == "weight_2 counts as 0: there is no LoRA 2"
    pad.drag(MIDDLE, (170, 100))
    assert weights_of(pad.numbers()) == [1, 0, 0, 0]
    pad.focus("weights")
    front.page.keyboard.press("ArrowRight")
    assert weights_of(pad.numbers()) == [1, 0, 0, 0]


def test_all_weights_zero(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2], weight_1=0, weight_2=0)
    look = pad.look()
    assert look["weights"] is None
    assert look["message"] == "All weights are 0: click in the pad"
    assert look["isProblem"]


def test_a_muted_loader_is_named(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    front.page.evaluate("(id) => { app.graph.getNodeById(id).mode = 2 }", pad.loader)
    pad.wait("look.isProblem && look.message === 'Load Reward LoRAs is muted: unmute it to run'")
    front.page.evaluate("(id) => { app.graph.getNodeById(id).mode = 0 }", pad.loader)
    pad.wait("look.message === ''")


def test_numbers_have_their_adapters_names_and_others_are_hidden(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    shown = """(id) => app.graph.getNodeById(id).widgets.filter((w) => w.name.startsWith('weight_') && !w.hidden)
        .map((w) => w.label ?? w.name)"""
    assert front.page.evaluate(shown, pad.node) == NAMES[:2]
    pad.set_number("weight_4", 0.1)  # a number that counts for nothing must stay in sight
    pad.wait("look.message !== ''")
    assert front.page.evaluate(shown, pad.node) == [*NAMES[:2], "weight_4"]
    assert not [entry["label"] for entry in front.workflow()["nodes"][1]["inputs"] if entry.get("label")]
