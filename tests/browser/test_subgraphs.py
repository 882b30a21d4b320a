"""The pad where its node, its loader or its numbers are on the other side of a subgraph's border."""

from __future__ import annotations

from typing import Any

import preference_pad
import pytest
from comfy_browser import FrontEnd
from make_server_models import LORAS

NAMES = [file.removesuffix(".safetensors") for file in LORAS]
MIDDLE, QUARTER = (150, 92), (210, 92)
WRAP = """([ids, promoted]) => {
    const nodes = ids.map((id) => app.graph.getNodeById(id))
    const { subgraph, node: host } = app.graph.convertToSubgraph(new Set(nodes))
    for (const name of promoted) {
        const inner = subgraph.nodes.find((node) => node.type === 'PreferenceWeights')
        subgraph.addInput(name, 'FLOAT').connect(inner.inputs.find((input) => input.widget?.name === name), inner)
    }
    return { host: host.id, inner: Object.fromEntries(subgraph.nodes.map((node) => [node.type, node.id])) }
}"""
ENTER = "(id) => { app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph, app.graph.getNodeById(id)) }"
COPY = """(id) => {
    const host = app.graph.getNodeById(id), copy = LiteGraph.createNode(host.subgraph.id)
    app.graph.add(copy)
    return copy.id
}"""
VALUES = """(id) => Object.fromEntries(app.rootGraph.getNodeById(id).widgets
    .filter((w) => w.name !== 'preference_pad').map((w) => [w.name, w.value]))"""


def wrap(front: FrontEnd, *nodes: Any, promoted: tuple[str, ...] = ()) -> dict[str, Any]:
    made = front.page.evaluate(WRAP, [list(nodes), list(promoted)])
    front.settle()
    return made


def enter(front: FrontEnd, host: Any) -> None:
    front.page.evaluate(ENTER, host)
    front.settle()
    front.fit()


@pytest.fixture(autouse=True)
def outermost(front: FrontEnd) -> Any:
    yield
    front.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


def test_the_loader_is_outside(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    made = wrap(front, pad.node)
    enter(front, made["host"])
    inside = preference_pad.Pad(front, made["inner"]["PreferenceWeights"])
    inside.wait(f"look.shown && look.labels.join() === '{','.join(NAMES)}' && look.message === ''")


def test_the_loader_is_in_another_subgraph(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS)
    wrap(front, pad.loader)
    pad.wait(f"look.labels.join() === '{','.join(NAMES)}'")


def test_the_subgraphs_own_node_has_a_pad(front: FrontEnd) -> None:
    """It shows and writes that node's numbers, also after the workflow was opened again; it goes with the numbers."""
    pad = preference_pad.make(front, LORAS)
    made = wrap(front, pad.node, promoted=("weight_1", "weight_2", "weight_3", "kl_scale"))
    taken = front.page.evaluate(
        "(id) => { const host = app.graph.getNodeById(id); const widget = host.addDOMWidget('probe', 'PROBE',"
        " document.createElement('div'), { serialize: false }); const taken = host.widgets.includes(widget);"
        " if (taken) host.removeWidget(widget); else widget.onRemove(); return taken }",
        made["host"],
    )
    if not taken:
        front.pause(1000)
        assert front.page.locator(".diffusion-blend-pad:visible").count() == 0
        pytest.skip("this front end takes no widgets on a subgraph's own node")
    host = preference_pad.Pad(front, made["host"])
    there = "(id) => app.graph.getNodeById(id).widgets.some((w) => w.name === 'preference_pad')"
    front.page.wait_for_function(there, arg=made["host"])
    front.load(front.workflow())
    front.page.wait_for_function(there, arg=made["host"])
    front.fit()
    front.pause(500)
    host.wait(f"look.shown && look.labels.join() === '{','.join(NAMES)}'")
    host.drag(host.look()["weights"], preference_pad.CORNERS[3][1])
    values = front.page.evaluate(VALUES, made["host"])
    assert [values[f"weight_{i}"] for i in (1, 2, 3)] == [0, 1, 0]
    sent = next(item for item in front.prompt().values() if item["class_type"] == "PreferenceWeights")["inputs"]
    assert [sent[f"weight_{i}"] for i in (1, 2, 3)] == [0, 1, 0]
    front.page.evaluate(
        "(id) => { const { subgraph } = app.graph.getNodeById(id);"
        " for (const input of [...subgraph.inputs]) if (/weight_[12]/.test(input.name)) subgraph.removeInput(input) }",
        made["host"],
    )
    front.page.wait_for_function(f"(id) => !({there})(id)", arg=made["host"])


def test_promoted_numbers_are_those_of_the_subgraphs_own_node(front: FrontEnd) -> None:
    """The pad inside shows and writes the outer widgets, whose values a run uses."""
    pad = preference_pad.make(front, LORAS[:2])
    made = wrap(front, pad.node, promoted=("weight_1", "weight_2", "kl_scale"))
    front.page.evaluate("(id) => { app.graph.getNodeById(id).widgets[0].value = 0.9 }", made["host"])
    enter(front, made["host"])
    inside = preference_pad.Pad(front, made["inner"]["PreferenceWeights"])
    x = 30 + 240 * 0.5 / 1.4
    inside.wait(f"look.shown && Math.abs(look.weights[0] - {x}) < 0.01 && look.message === ''")
    inside.drag((x, 92), QUARTER)
    front.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
    assert front.page.evaluate(VALUES, made["host"]) == pytest.approx(
        {"weight_1": 0.25, "weight_2": 0.75, "kl_scale": 1.0}, abs=0.011
    )
    sent = next(item for item in front.prompt().values() if item["class_type"] == "PreferenceWeights")["inputs"]
    assert [sent["weight_1"], sent["weight_2"]] == pytest.approx([0.25, 0.75], abs=0.011)


def test_numbers_that_differ_between_copies_are_not_written_inside(front: FrontEnd) -> None:
    """The copies of a subgraph share the node inside, so the pad there cannot know whose numbers are meant."""
    pad = preference_pad.make(front, LORAS[:2])
    made = wrap(front, pad.node, promoted=("weight_1", "weight_2"))
    copy = front.page.evaluate(COPY, made["host"])
    front.page.evaluate("(id) => { app.graph.getNodeById(id).widgets[0].value = 0.9 }", copy)
    front.settle()
    before = [front.page.evaluate(VALUES, host) for host in (made["host"], copy)]
    enter(front, copy)
    inside = preference_pad.Pad(front, made["inner"]["PreferenceWeights"])
    inside.wait("look.message === 'Set weight_1 on the node of each copy of this subgraph'")
    inside.drag(MIDDLE, QUARTER)
    assert [front.page.evaluate(VALUES, host) for host in (made["host"], copy)] == before


def test_numbers_that_copies_share_are_called_so(front: FrontEnd) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    made = wrap(front, pad.node, pad.loader)
    front.page.evaluate(COPY, made["host"])
    enter(front, made["host"])
    inside = preference_pad.Pad(front, made["inner"]["PreferenceWeights"])
    inside.wait("look.message === '2 copies of this subgraph share these numbers'")
