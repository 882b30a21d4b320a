"""The layout of a sweep's images: a triangle, a row or a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...blending.preference import Preference
from ...blending.simplex import triangle_divisions
from ..engine.sweep_points import shares, used_adapters

LONGEST_ROW = 12
"""Longer ones are wrapped into a grid."""
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Layout:
    """Places of the images.

    Args:
        kind: "triangle", "row" or "grid".
        places: left and top of every image, in cells.
        columns: how wide the whole is, in cells.
        rows: how high it is, in cells.
    """

    kind: str
    places: tuple[tuple[float, float], ...]
    columns: float
    rows: int


def arrange(preferences: Sequence[object], adapters: int) -> Layout:
    """Choose the layout that shows how the preferences lie to one another.

    Args:
        preferences: the points of a sweep; those that are not plain have no one place and go in order.
        adapters: how many there are.

    Returns:
        A triangle for a whole lattice over three adapters; a row for few points on a line or at several KL scales, and for
        other short lists; else a grid in reading order.
    """
    plain = [preference for preference in preferences if isinstance(preference, Preference)]
    if len(plain) == len(preferences) and adapters == 3:
        places = triangle([shares(preference, 3) for preference in plain])
        if places is not None and len({preference.kl_scale for preference in plain}) == 1:
            side = max(top for _, top in places) + 1
            return Layout("triangle", tuple(places), side, round(side))
    if len(preferences) <= LONGEST_ROW and (len(plain) < len(preferences) or on_a_line(plain)):
        return Layout("row", tuple((i, 0) for i in range(len(preferences))), len(preferences), 1)
    columns = math.ceil(math.sqrt(len(preferences)))
    places = [(i % columns, i // columns) for i in range(len(preferences))]
    return Layout("grid", tuple(places), columns, math.ceil(len(preferences) / columns))


def triangle(weights: Sequence[Sequence[float]]) -> list[tuple[float, float]] | None:
    """Places on the triangular lattice, if the weights are all its points.

    The first adapter's corner is on top, the second's at the lower left, the third's at the lower right:
    ``top = d (1 - w_1)``, ``left = d w_1 / 2 + d w_3``, in cells, d the lattice's divisions. This is the barycentric
    map, so that a step of 1/d from one adapter to another is the same move everywhere.

    Args:
        weights: three shares of sum 1 a point.

    Returns:
        One place a point, or None where the weights are no whole lattice.
    """
    divisions = triangle_divisions(len(weights))
    if divisions is None:
        return None
    parts = [tuple(round(divisions * weight) for weight in point) for point in weights]
    even = all(
        abs(divisions * weight - part) < _TOLERANCE * divisions
        for point, whole in zip(weights, parts, strict=True)
        for weight, part in zip(point, whole, strict=True)
    )
    if not even or len(set(parts)) != len(parts):
        return None
    return [(first / 2 + third, divisions - first) for first, _, third in parts]


def on_a_line(preferences: Sequence[Preference]) -> bool:
    """Whether weights and KL scale go along one straight line, in order or not.

    Args:
        preferences: plain ones.
    """
    count = used_adapters(preferences)
    if count == 0:
        return True
    points = [(*shares(preference, count), preference.kl_scale) for preference in preferences]
    start, end = min(points), max(points)  # its ends, if it is a line: some coordinate moves, the first one counts
    along = [b - a for a, b in zip(start, end, strict=True)]
    length = sum(step * step for step in along)
    if length == 0:
        return True
    for point in points:
        offset = [value - a for value, a in zip(point, start, strict=True)]
        share = sum(x * step for x, step in zip(offset, along, strict=True)) / length
        if any(abs(x - share * step) > _TOLERANCE for x, step in zip(offset, along, strict=True)):
            return False
    return True
