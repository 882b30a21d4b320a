"""Which weight belongs to which adapter, where loaders have empty slots and loaders are chained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

Slots = Sequence[Sequence[bool]]
"""For every loader of a chain, in order: whether each of its slots holds an adapter that is switched on. Slots after the last
one with a file are left out."""

Link = Sequence[Sequence[str]]
"""The loaders that a weight node is connected to itself, in order: the name of the adapter in each slot, empty without one."""


def weight_places(loaders: Slots, nodes: Sequence[int]) -> tuple[int | None, ...]:
    """Find the weight of every adapter.

    With at least as many weight nodes as loaders, node k belongs to loader k, and weight i to slot i. With fewer nodes, or
    where a loader has more slots than its node has weights, the weights go through the slots of all loaders in order.

    Args:
        loaders: the slots.
        nodes: how many weights each weight node has, in order.

    Returns:
        For every adapter in order: the index of its weight among all nodes' weights, None if no weight is left for it.
    """
    total = sum(nodes)
    too_long = any(len(slots) > size for slots, size in zip(loaders, nodes, strict=False))
    if len(nodes) < len(loaders) or too_long:
        return tuple(i if i < total else None for i, used in enumerate(chain.from_iterable(loaders)) if used)
    starts = [sum(nodes[:k]) for k in range(len(nodes))]
    return tuple(
        start + i if i < size else None
        for slots, start, size in zip(loaders, starts, nodes, strict=False)
        for i, used in enumerate(slots)
        if used
    )


def loaders_of_nodes(loaders: Slots, names: Sequence[str], nodes: Sequence[int], links: Sequence[Link | None]) -> Slots:
    """Find each weight node's loader where there are more nodes than loaders, because a loader is bypassed or muted.

    The nodes' own connections tell which loader each belongs to, as long as they name all loaders, in order. A node for which
    no loader is left, or whose connection an earlier node has as well, gets one without slots, so that its weights count as 0.

    Args:
        loaders: the slots.
        names: the adapters' names, in order.
        nodes: how many weights each node has.
        links: what each node is connected to itself, None where it is not connected.

    Returns:
        A loader for each node; ``loaders`` as they are where the connections do not tell, or need not.
    """
    if len(nodes) <= len(loaders):
        return loaders
    named = name_slots(loaders, names)
    ends = [_end(named, link) for link in links]
    if not any(end is not None for end in ends):
        return loaders
    found: list[Sequence[bool]] = []
    last = -1
    for node, end in enumerate(ends):
        if end is None:  # the next loader, if it is no later node's
            later = next((end for end in ends[node + 1 :] if end is not None), len(loaders))
            end = last + 1 if last + 1 < later else None
        elif end == last:  # its own loader is bypassed, so the host hands on the one before
            end = None
        elif end < last:
            return loaders
        found.append(() if end is None else loaders[end])
        last = last if end is None else end
    return found if sum(map(bool, found)) == sum(map(bool, loaders)) else loaders


def name_slots(loaders: Slots, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The adapter's name in each slot of each loader, empty where it holds none."""
    left = iter(names)
    return tuple(tuple(next(left) if used else "" for used in slots) for slots in loaders)


def _end(named: Link, link: Link | None) -> int | None:
    """The loader that a connection ends at, None if it is none of them."""
    if not link or len(link) > len(named) or tuple(named[len(link) - 1]) != tuple(link[-1]):
        return None
    return len(link) - 1


def arrange_weights(
    weights: Sequence[float], nodes: Sequence[int], loaders: Slots, names: Sequence[str]
) -> tuple[float, ...]:
    """Match the weights of nodes to the adapters in the loaders' slots.

    The weight of an empty slot counts as 0. The other weights keep their proportions.

    Args:
        weights: of all nodes, in order.
        nodes: how many weights each node has.
        loaders: the slots.
        names: the adapters' names, in order.

    Returns:
        One weight per adapter.

    Raises:
        ValueError: an adapter has no weight, or a node without a loader has a weight above 0.
    """
    places = weight_places(loaders, nodes)
    without = [name for name, place in zip(names, places, strict=True) if place is None]
    if without:
        raise ValueError(
            f"{len(weights)} weights for {len(names)} adapters ({', '.join(names)}): {', '.join(without)} have none. "
            "Chain a second Preference Weights for the second Load Reward LoRAs."
        )
    for index in _without_loader(loaders, nodes):
        if weights[index] > 0 and index not in places:
            raise ValueError(
                f"{weight_name(index, nodes)} is {weights[index]}, but there is no adapter for it, only "
                f"{', '.join(names)}: set it to 0 or load another LoRA."
            )
    return tuple(weights[place] for place in places if place is not None)


def ignored_weights(weights: Sequence[float], nodes: Sequence[int], loaders: Slots) -> list[str]:
    """Name the weights above 0 that count as 0 because their slot is empty."""
    places = weight_places(loaders, nodes)
    return [
        f"{weight_name(index, nodes)} ({weight:g})"
        for index, weight in enumerate(weights)
        if nodes and weight > 0 and index not in places
    ]


def misplaced_weights(
    weights: Sequence[float],
    nodes: Sequence[int],
    links: Sequence[Link | None],
    loaders: Slots,
    names: Sequence[str],
) -> list[str]:
    """Name the weights above 0 that go to other adapters than those their node is connected to itself."""

    def owners(loaders: Slots, names: Sequence[str]) -> dict[int | None, str]:
        return dict(zip(weight_places(loaders_of_nodes(loaders, names, nodes, links), nodes), names, strict=True))

    here, found = owners(loaders, names), []
    for node, link in enumerate(links):
        if link is None:
            continue
        own = owners([[bool(name) for name in slots] for slots in link], [name for s in link for name in s if name])
        start = sum(nodes[:node])
        found += [
            f"{weight_name(index, nodes)} ({own.get(index, 'no adapter')} there, {here.get(index, 'no adapter')} here)"
            for index in range(start, start + nodes[node])
            if weights[index] > 0 and own.get(index) != here.get(index)
        ]
    return found


def weight_name(index: int, nodes: Sequence[int]) -> str:
    """Name a weight as an artist finds it: ``weight_2``, in a chain ``weight_2 of Preference Weights number 3``."""
    node, number = 0, index + 1
    while node + 1 < len(nodes) and number > nodes[node]:
        number -= nodes[node]
        node += 1
    return f"weight_{number}" + (f" of Preference Weights number {node + 1}" if len(nodes) > 1 else "")


def _without_loader(loaders: Slots, nodes: Sequence[int]) -> range:
    """The indices of the weights whose node has no loader."""
    return range(sum(nodes[: len(loaders)]), sum(nodes))
