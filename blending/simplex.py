"""The simplex of preference weights: its lattice, and the plane figure of three adapters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

TRIANGLE_HEIGHT = math.sqrt(3) / 2

TRIANGLE_CORNERS = ((0.5, TRIANGLE_HEIGHT), (0.0, 0.0), (1.0, 0.0))
"""The points of all weight on the first, second and third of three adapters: top, left, right. y points up, the side is 1."""


def lattice_size(adapters: int, divisions: int) -> int:
    """Return the number of points of `lattice`, ``C(d + m - 1, m - 1)``."""
    return math.comb(divisions + adapters - 1, adapters - 1)


def lattice(adapters: int, divisions: int) -> list[tuple[float, ...]]:
    """Return every vector of weights of sum 1 whose entries are multiples of ``1 / divisions``.

    Args:
        adapters: m, at least 1.
        divisions: d, steps along an edge, at least 1.

    Returns:
        Points, float[m] each, in descending lexicographic order: the first adapter's corner comes first. Three adapters
        give the rows of a triangle, from top to bottom.

    Raises:
        ValueError: fewer than 1 adapter or 1 division.
    """
    if adapters < 1 or divisions < 1:
        raise ValueError(f"A lattice over {adapters} adapters in {divisions} divisions: both must be at least 1.")
    bars = itertools.combinations(range(divisions + adapters - 1), adapters - 1)  # stars and bars
    ends = ((-1, *bar, divisions + adapters - 1) for bar in bars)
    parts = sorted(([b - a - 1 for a, b in itertools.pairwise(end)] for end in ends), reverse=True)
    return [tuple(part / divisions for part in point) for point in parts]


def triangle_divisions(points: int) -> int | None:
    """Return the divisions of the lattice over three adapters with this number of points, or None if there is none.

    Solves ``n = (d + 1) (d + 2) / 2`` for d, at least 1.
    """
    divisions = round((math.sqrt(8 * points + 1) - 3) / 2)
    return divisions if divisions >= 1 and (divisions + 1) * (divisions + 2) // 2 == points else None


def triangle_point(weights: Sequence[float]) -> tuple[float, float]:
    """Map a preference over three adapters to its point, ``sum_i w_i corner_i`` (barycentric coordinates).

    Args:
        weights: float[3], sum 1.

    Returns:
        x and y in the plane of `TRIANGLE_CORNERS`.
    """
    x, y = zip(*TRIANGLE_CORNERS, strict=True)
    return _dot(weights, x), _dot(weights, y)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))
