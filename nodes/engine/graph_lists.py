"""Lists in a graph: which other nodes give lists whose items meet those of a sweep.

The host runs a node once for each item of its lists, item by item, and repeats the last item of a shorter list.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]
"""A prompt as the host runs it: id -> ``{"class_type": ..., "inputs": {...}}``; a link is ``[id, slot]``."""


def lists_beside(graph: Graph, own: str, classes: Mapping[str, Any] | None = None) -> list[str]:
    """Find the other nodes whose lists meet the list of a node.

    Args:
        graph: the prompt.
        own: the id of the node.
        classes: the host's nodes by name; the registered ones if None.

    Returns:
        Their ids, in the graph's order.
    """
    # The host's own module, which is loaded wherever a prompt runs.
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}) if classes is None else classes
    met = {
        source
        for node in _downstream(graph, own, known)
        if not _collects(graph, node, known)
        for source in _sources(graph, node, known, set())
    }
    return [node for node in graph if node in met and node != own]


def length_of_sweep(inputs: Mapping[str, Any]) -> int | None:
    """Return the number of preferences that a Preference Sweep with these inputs gives, or None where it is not written there."""
    points = inputs.get("points")
    return points if inputs.get("kind") in ("line", "kl scales") and isinstance(points, int) else None


def _links(graph: Graph, node: str) -> Iterator[tuple[str, int]]:
    for value in graph[node].get("inputs", {}).values():
        if isinstance(value, (list, tuple)) and len(value) == 2 and str(value[0]) in graph:
            yield str(value[0]), int(value[1])


def _class_of(graph: Graph, node: str, classes: Mapping[str, Any]) -> Any:
    return classes.get(graph[node].get("class_type", ""))


def _collects(graph: Graph, node: str, classes: Mapping[str, Any]) -> bool:
    """Whether a node takes its lists whole."""
    return bool(getattr(_class_of(graph, node, classes), "INPUT_IS_LIST", False))


def _gives_a_list(graph: Graph, node: str, slot: int, classes: Mapping[str, Any]) -> bool:
    lists = getattr(_class_of(graph, node, classes), "OUTPUT_IS_LIST", None) or ()
    return slot < len(lists) and bool(lists[slot])


def _downstream(graph: Graph, own: str, classes: Mapping[str, Any]) -> set[str]:
    """The nodes that run once for each item of a node's list."""
    reached = {own}
    grown = True
    while grown:
        more = {
            node
            for node in graph
            if node not in reached
            and any(source in reached and not (source != own and _collects(graph, source, classes))
                    for source, _ in _links(graph, node))
        }  # fmt: skip
        reached |= more
        grown = bool(more)
    return reached - {own}


def _sources(graph: Graph, node: str, classes: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """The nodes whose lists a node's inputs come from."""
    for source, slot in _links(graph, node):
        if _gives_a_list(graph, source, slot, classes):
            yield source
        elif source not in seen and not _collects(graph, source, classes):
            seen.add(source)
            yield from _sources(graph, source, classes, seen)
