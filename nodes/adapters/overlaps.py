"""Targets of one adapter that share numbers of a parameter, such as a fused weight and a slice of it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from .targets import offset_of, parameter_of


def overlapping(targets: Iterable[Any]) -> list[list[Any]]:
    """Group targets so that those of different groups change different numbers.

    Args:
        targets: of the host's key map, in the order in which the host applies their patches.

    Returns:
        Groups, each in that order.
    """
    groups: dict[str, list[list[Any]]] = {}
    for target in targets:
        others = groups.setdefault(parameter_of(target), [])
        touching = [group for group in others if any(_overlap(target, other) for other in group)]
        apart = [group for group in others if not any(group is one for one in touching)]
        groups[parameter_of(target)] = [*apart, [*chain(*touching), target]]
    return list(chain(*groups.values()))


def _overlap(one: Any, other: Any) -> bool:
    """Whether two targets of one parameter share numbers."""
    first, second = offset_of(one), offset_of(other)
    if first is None or second is None or first[0] != second[0]:
        return True
    return first[1] < second[1] + second[2] and second[1] < first[1] + first[2]
