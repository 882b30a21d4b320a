"""Simulated people: hidden utilities over mixtures of adapters and the KL scale, and votes by them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...preference_learning.space import Region, points_of
from ...preference_learning.votes import EQUAL, FIRST, SECOND, Option, Vote

Array = NDArray[np.float64]
Utility = Callable[[Array], Array]

KL_RANGE = (0.5, 1.5)
KINDS = ("linear", "peaked")
TUNED_ON = range(8)
"""The numbers of the people whom the assumptions in `preference_learning` were chosen for. The study asks only others."""
ALIKE = 0.02
"""Options whose utilities differ by less than this share of the whole range count as equal."""
_MANY = 4000


@dataclass(frozen=True)
class Person:
    """A hidden utility, and how it votes.

    Args:
        utility: of points float[N, m + 1].
        best: its largest value over the region.
        average: its mean over the region.
        worst: its smallest value.
        carelessness: the share of votes that are a coin's.
        rng: for these.
    """

    utility: Utility
    best: float
    average: float
    worst: float
    carelessness: float
    rng: np.random.Generator = field(repr=False)

    def vote(self, first: Option, second: Option) -> Vote:
        """Choose between two options."""
        if self.rng.random() < self.carelessness:
            return Vote(first, second, FIRST if self.rng.random() < 0.5 else SECOND)
        a, b = self.utility(points_of([first, second]))
        if abs(a - b) < ALIKE * (self.best - self.worst):
            return Vote(first, second, EQUAL)
        return Vote(first, second, FIRST if a > b else SECOND)

    def regret(self, option: Option) -> float:
        """What is lost: 0 for the best option, 1 for an average one."""
        return (self.best - float(self.utility(points_of([option]))[0])) / (self.best - self.average)


def make_person(kind: str, adapters: int, carelessness: float, number: int) -> Person:
    """A person of a kind.

    A linear utility is ``a.w + b k`` with normal a and b, and k the KL scale from -1 to 1 over its range. A peaked one is
    ``-|w - w*|^2 - (k - k*)^2 / 8`` with w* uniform on the simplex and k* uniform.

    Args:
        kind: one of `KINDS`.
        adapters: m.
        carelessness: the share of random votes.
        number: the person's own number; the same for every way of asking.
    """
    rng = np.random.default_rng([KINDS.index(kind), adapters, number])
    peak, slope = rng.dirichlet(np.ones(adapters)), rng.normal(size=adapters)
    middle, tilt = rng.uniform(-1, 1), 0.5 * rng.normal()

    def utility(points: Array) -> Array:
        scale = (points[:, -1] - sum(KL_RANGE) / 2) / (KL_RANGE[1] - KL_RANGE[0]) * 2
        if kind == "linear":
            return points[:, :-1] @ slope + tilt * scale
        return -np.square(points[:, :-1] - peak).sum(axis=1) - np.square(scale - middle) / 8

    values = utility(_everywhere(adapters))
    best = 0.0 if kind == "peaked" else float(slope.max() + abs(tilt))
    return Person(utility, best, float(values[-_MANY:].mean()), float(values.min()), carelessness, rng)


@functools.lru_cache(maxsize=8)
def _everywhere(adapters: int) -> Array:
    """The lattice, and many points that are uniform in the region."""
    rng = np.random.default_rng(adapters)
    uniform = np.column_stack([rng.dirichlet(np.ones(adapters), _MANY), rng.uniform(*KL_RANGE, _MANY)])
    return np.vstack([Region(adapters, *KL_RANGE).lattice(), uniform])
