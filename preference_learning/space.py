"""The region that a search looks in: the simplex of weights times a range of KL scales, perhaps shrunk around an option.

Points are rows of an array, float[N, m + 1]: m weights of sum 1, then the KL scale.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .votes import Narrowing, Option

Array = NDArray[np.float64]

MOST_POINTS = 500
"""About how many points a lattice of the region has: enough for 8 adapters' corners, edges and faces."""
STEPS = (0.3, 0.15, 0.07)
"""Lengths of the moves around a good point, as shares of the region."""


@dataclass(frozen=True)
class Region:
    """Where options are looked for.

    Args:
        adapters: m, at least 2.
        kl_low: the smallest KL scale.
        kl_high: the largest one.
        centre: the point that the region is shrunk to, float[m + 1].
        within: the share of the whole region that is left.

    Raises:
        ValueError: fewer than 2 adapters, or the KL scales are in the wrong order.
    """

    adapters: int
    kl_low: float
    kl_high: float
    centre: tuple[float, ...] = ()
    within: float = 1.0

    def __post_init__(self) -> None:
        if self.adapters < 2:
            raise ValueError(f"A preference is looked for among at least 2 adapters, and there is {self.adapters}.")
        if not self.kl_low <= self.kl_high:
            raise ValueError(f"The KL scale goes from {self.kl_low} to {self.kl_high}: the first must not be larger.")

    def narrowed(self, narrowing: Narrowing) -> Region:
        """The part of the whole region around an option."""
        scale = min(max(narrowing.centre.kl_scale, self.kl_low), self.kl_high)
        return Region(self.adapters, self.kl_low, self.kl_high, (*narrowing.centre.weights, scale), narrowing.within)

    def placed(self, points: Array) -> Array:
        """Shrink points of the whole region into this one: ``centre + within * (x - centre)``."""
        if not self.centre:
            return points
        return np.asarray(self.centre) + self.within * (points - np.asarray(self.centre))

    def corners(self, scale: float) -> list[Option]:
        """Each adapter alone, as far as the region goes, at one KL scale."""
        points = np.column_stack([np.eye(self.adapters), np.full(self.adapters, scale)])
        return [option_of(point) for point in self.placed(points)]

    def lattice(self) -> Array:
        """Every mixture at even steps, at several KL scales."""
        return self.placed(_lattice_with_scales(self.adapters, self.kl_low, self.kl_high))

    def mixtures(self, divisions: int) -> Array:
        """Every vector of weights whose entries are multiples of ``1 / divisions``, float[N, m]."""
        return _lattice(self.adapters, divisions)

    def around(self, point: Array) -> Array:
        """Moves from a point towards and away from each adapter and along the KL scale, inside the region."""
        targets = self.placed(np.column_stack([np.eye(self.adapters), np.full(self.adapters, point[-1])]))[:, :-1]
        least, moved = targets.min(axis=0), []
        for step in STEPS:
            towards = point[:-1] + step * (targets - point[:-1])
            spare = np.maximum(point[:-1] - step * (targets - point[:-1]) - least, 0)
            away = least + (1 - least.sum()) * spare / np.maximum(spare.sum(axis=1, keepdims=True), 1e-12)
            mixtures = np.vstack([point[:-1], towards, away[spare.sum(axis=1) > 1e-9]])
            reach = step * self.within * (self.kl_high - self.kl_low)
            for scale in {point[-1], *np.clip([point[-1] - reach, point[-1] + reach], *self.kl_limits)}:
                moved.append(np.column_stack([mixtures, np.full(len(mixtures), scale)]))
        return np.vstack(moved)

    @property
    def kl_limits(self) -> tuple[float, float]:
        """The smallest and largest KL scale inside the region."""
        if not self.centre:
            return self.kl_low, self.kl_high
        low, high = (self.centre[-1] + self.within * (end - self.centre[-1]) for end in (self.kl_low, self.kl_high))
        return low, high


def rounded(points: Array) -> Array:
    """Weights in hundredths of sum 1 (largest remainders first), and the KL scale in hundredths, float[N, m + 1]."""
    hundreds = points[:, :-1] / points[:, :-1].sum(axis=1, keepdims=True) * 100
    whole = np.floor(hundreds + 1e-9)
    missing = np.rint(100 - whole.sum(axis=1))
    rank = np.argsort(np.argsort(whole - hundreds, axis=1, kind="stable"), axis=1, kind="stable")
    return np.column_stack([whole + (rank < missing[:, None]), np.rint(points[:, -1] * 100)]) / 100


def option_of(point: Array | Sequence[float]) -> Option:
    """A point as an option, `rounded`."""
    row = [float(value) for value in rounded(np.asarray(point, dtype=float)[None])[0]]
    return Option(tuple(row[:-1]), row[-1] + 0.0)  # + 0.0: no minus zero in the text


def points_of(options: Sequence[Option]) -> Array:
    """Options as points, float[N, m + 1]."""
    return np.array([(*option.weights, option.kl_scale) for option in options], dtype=float)


@functools.lru_cache(maxsize=16)
def _lattice_with_scales(adapters: int, kl_low: float, kl_high: float) -> Array:
    levels = 5 if kl_high > kl_low else 1
    divisions = 1
    while math.comb(divisions + adapters, adapters - 1) * levels <= MOST_POINTS and divisions < 24:
        divisions += 1
    mixtures = _lattice(adapters, divisions)
    scales = np.linspace(kl_low, kl_high, levels)
    points = np.column_stack([np.repeat(mixtures, levels, axis=0), np.tile(scales, len(mixtures))])
    points.flags.writeable = False
    return points


def _lattice(adapters: int, divisions: int) -> Array:
    bars = itertools.combinations(range(divisions + adapters - 1), adapters - 1)  # stars and bars
    ends = np.array([(-1, *bar, divisions + adapters - 1) for bar in bars])
    return (np.diff(ends, axis=1) - 1) / divisions
