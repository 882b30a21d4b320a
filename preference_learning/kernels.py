"""What is assumed of a person's utility before any vote: the covariance of its values at two options.

Utilities are functions of the place ``x`` of an option, in which a change of the weights and one of the KL scale are far apart
alike. They are in units of a vote's noise: a difference of 1 is preferred in about 70 % of the careful votes.

A person with a peak at p has ``f = -c |x - p|^2``: a slope ``2 c p`` and a curvature -c. A person who wants as much as possible
of one adapter has a slope alone. So the prior has both, each with a spread (the curvature along the weights and along the KL
scale each for itself), and a smooth rest for all other shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Squares = tuple[Array, Array]

LINEAR, CURVED, SMOOTH, LENGTH = 30.0, 36.0, 9.0, 0.6
"""Variances of the slope, the curvature and the smooth rest, and the distance over which the rest changes."""
QUADRATIC = 36.0
"""Variance of the quadratic kernel's second part."""
MIXING = 9.0
"""The expected curvature: how fast the utility falls with the squared distance from the middle."""
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
        value: the covariance as a function of ``x.x'``, and of ``|x|^2`` and ``|x'|^2``, each of the weights' part of x and of
            the KL scale's part.
    """

    value: Callable[[Array, Squares, Squares], Array]

    def __call__(self, a: Array, b: Array) -> Array:
        """The covariance of points float[N, m + 1] with points float[M, m + 1], float[N, M]."""
        first, second = place(a), place(b)
        weights, scale = _squares(first)
        return self.value(first @ second.T, (weights[:, None], scale[:, None]), _squares(second))

    def diagonal(self, points: Array) -> Array:
        """The variance at points float[N, m + 1], float[N]."""
        squares = _squares(place(points))
        return self.value(squares[0] + squares[1], squares, squares)


def _squares(places: Array) -> Squares:
    return np.square(places[:, :-1]).sum(axis=1), np.square(places[:, -1])


def _mixed(inner: Array, first: Squares, second: Squares) -> Array:
    distance = np.maximum(first[0] + first[1] + second[0] + second[1] - 2 * inner, 0)
    curved = first[0] * second[0] + first[1] * second[1]
    return LINEAR * inner + CURVED * curved + SMOOTH * np.exp(-distance / (2 * LENGTH**2))


gaussian_process = Kernel(_mixed)
"""``LINEAR x.x' + CURVED (|w|^2 |w'|^2 + k^2 k'^2) + SMOOTH exp(-|x - x'|^2 / (2 LENGTH^2))`` with ``x = (w, k)``."""

quadratic = Kernel(lambda inner, first, second: LINEAR * inner + QUADRATIC * inner**2)
"""A quadratic utility with normal coefficients: ``LINEAR x.x' + QUADRATIC (x.x')^2``."""

KERNELS: dict[str, Kernel] = {"gaussian process": gaussian_process, "quadratic": quadratic}
