"""What is assumed of a person's utility before any vote: the covariance of its values at two options.

A picture depends on an option through the coefficients ``c = kl_scale * w`` alone, so utilities are functions of ``c``. Utilities
are in units of a vote's noise: a difference of 1 is preferred in about 70 % of the votes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINEAR, SMOOTH, LENGTH = 2.0, 9.0, 0.6
"""Variances of the linear and the smooth part, and the distance in coefficients over which the smooth part changes."""
QUADRATIC = 9.0


def coefficients(points: Array) -> Array:
    """``c = kl_scale * w``, float[N, m], of points float[N, m + 1]."""
    return points[:, :-1] * points[:, -1:]


MIXING = 3.0
"""The lead of equal weights over one adapter alone before any vote, times m / (m - 1)."""


def prior_mean(points: Array) -> Array:
    """``-MIXING |w - 1/m|^2``, float[N]: without votes a mixture is the better guess, since a peak may lie anywhere."""
    weights = points[:, :-1]
    return -MIXING * np.square(weights - 1 / weights.shape[1]).sum(axis=1)


@dataclass(frozen=True)
class Kernel:
    """A covariance.

    Args:
        value: the covariance as a function of ``c.c'`` and ``|c - c'|^2``.
    """

    value: Callable[[Array, Array], Array]

    def __call__(self, a: Array, b: Array) -> Array:
        """The covariance of points float[N, m + 1] with points float[M, m + 1], float[N, M]."""
        first, second = coefficients(a), coefficients(b)
        inner = first @ second.T
        distance = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)[None] - 2 * inner
        return self.value(inner, np.maximum(distance, 0, out=distance))

    def diagonal(self, points: Array) -> Array:
        """The variance at points float[N, m + 1], float[N]."""
        return self.value(np.square(coefficients(points)).sum(axis=1), np.zeros(len(points)))


gaussian_process = Kernel(
    lambda inner, distance: LINEAR * inner + SMOOTH * np.exp(-distance / (2 * LENGTH**2)),
)
"""A linear trend plus a smooth function: ``LINEAR c.c' + SMOOTH exp(-|c - c'|^2 / (2 LENGTH^2))``."""

quadratic = Kernel(lambda inner, distance: LINEAR * inner + QUADRATIC * inner**2)
"""A quadratic utility with normal coefficients: ``LINEAR c.c' + QUADRATIC (c.c')^2``."""

KERNELS: dict[str, Kernel] = {"gaussian process": gaussian_process, "quadratic": quadratic}
