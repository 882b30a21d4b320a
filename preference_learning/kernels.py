"""What is assumed of a person's utility before any vote: the covariance of its values at two options.

Utilities are functions of the place ``x`` of an option, in which a change of the weights and one of the KL scale are far apart
alike. They are in units of a vote's noise: a difference of 1 is preferred in about 70 % of the votes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINEAR, SMOOTH, LENGTH = 2.0, 9.0, 0.6
"""Variances of the linear and the smooth part, and the distance over which the smooth part changes."""
QUADRATIC = 9.0


MIXING = 3.0
"""The lead of equal weights over one adapter alone before any vote, times m / (m - 1)."""
KL_UNIT = 0.7
"""How far apart two KL scales that differ by 1 are, on the scale of the weights."""


def place(points: Array) -> Array:
    """``x = (w - 1/m, KL_UNIT (kl_scale - 1))``, float[N, m + 1]: equal weights at KL scale 1 are the origin."""
    weights = points[:, :-1]
    return np.column_stack([weights - 1 / weights.shape[1], KL_UNIT * (points[:, -1] - 1)])


def prior_mean(points: Array) -> Array:
    """``-MIXING |x|^2``, float[N]: without votes the middle is the better guess, since a peak may lie anywhere."""
    return -MIXING * np.square(place(points)).sum(axis=1)


@dataclass(frozen=True)
class Kernel:
    """A covariance.

    Args:
        value: the covariance as a function of ``x.x'`` and ``|x - x'|^2``.
    """

    value: Callable[[Array, Array], Array]

    def __call__(self, a: Array, b: Array) -> Array:
        """The covariance of points float[N, m + 1] with points float[M, m + 1], float[N, M]."""
        first, second = place(a), place(b)
        inner = first @ second.T
        distance = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)[None] - 2 * inner
        return self.value(inner, np.maximum(distance, 0, out=distance))

    def diagonal(self, points: Array) -> Array:
        """The variance at points float[N, m + 1], float[N]."""
        return self.value(np.square(place(points)).sum(axis=1), np.zeros(len(points)))


gaussian_process = Kernel(
    lambda inner, distance: LINEAR * inner + SMOOTH * np.exp(-distance / (2 * LENGTH**2)),
)
"""A linear trend plus a smooth function: ``LINEAR x.x' + SMOOTH exp(-|x - x'|^2 / (2 LENGTH^2))``."""

quadratic = Kernel(lambda inner, distance: LINEAR * inner + QUADRATIC * inner**2)
"""A quadratic utility with normal coefficients: ``LINEAR x.x' + QUADRATIC (x.x')^2``."""

KERNELS: dict[str, Kernel] = {"gaussian process": gaussian_process, "quadratic": quadratic}
