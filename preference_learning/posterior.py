"""The posterior of a utility given votes: a Gaussian process, Davidson's model of ties, and some careless votes.

Each vote speaks of one number, ``z = f(a) - f(b)``, so the approximation is made for the votes' numbers: their covariance is
``C = D K D'`` with a row of D per vote (Chu and Ghahramani 2005). `propagation` finds the Gaussian that fits the votes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .kernels import Kernel, gaussian_process, prior_mean
from .propagation import propagate
from .space import points_of
from .votes import BAD, EQUAL, FIRST, SECOND, Vote

Array = NDArray[np.float64]

TIES = 0.5
"""Davidson's nu: of two options of equal utility, a share nu / (2 + nu) of the votes says that they are equal."""
CARELESS = 0.1
"""The share of votes that are taken for a coin's: a vote against many others is then a slip and does not pull on them."""
_SIGN = {FIRST: 1.0, SECOND: -1.0, EQUAL: 0.0}


class Posterior:
    """The mean and the covariance of a person's utility at any points.

    A careful vote for a has the likelihood ``exp(z / 2) / (2 cosh(z / 2) + nu)``, a tie ``nu / (...)`` (Davidson 1970). "Both
    are bad" says that each is worse than the average option, whose utility is 0: two logistic votes. A share `CARELESS` of the
    votes is a coin's: ``(1 - CARELESS) p + CARELESS / 2``. So a vote that many others contradict hardly counts.

    Args:
        votes: any number.
        kernel: the prior's covariance.
    """

    def __init__(self, votes: Sequence[Vote], kernel: Kernel = gaussian_process) -> None:
        self.kernel = kernel
        options = list(dict.fromkeys(option for vote in votes for option in (vote.first, vote.second)))
        self._place = {option: i for i, option in enumerate(options)}
        self._points = points_of(options)
        self._rows, signs, ties = self._design(votes)
        if not votes:
            return
        covariance = self._rows @ kernel(self._points, self._points) @ self._rows.T
        offset = self._rows @ prior_mean(self._points)
        found = propagate(covariance, offset, lambda z: likelihood(z, signs, ties))
        self._weights, self._root, self._factor = found.weights, found.root, found.factor

    def _design(self, votes: Sequence[Vote]) -> tuple[Array, Array, Array]:
        """The matrix D, and each row's sign and nu."""
        rows, signs, ties = [], [], []
        for vote in votes:
            ends = [(vote.first, 1.0), (vote.second, -1.0)]
            for parts in [[(option, -1.0)] for option, _ in ends] if vote.outcome == BAD else [ends]:
                row = np.zeros(len(self._place))
                for option, sign in parts:
                    row[self._place[option]] += sign
                rows.append(row)
                signs.append(1.0 if vote.outcome == BAD else _SIGN[vote.outcome])
                ties.append(0.0 if vote.outcome == BAD else TIES)
        return np.array(rows).reshape(len(rows), len(self._place)), np.array(signs), np.array(ties)

    def mean(self, points: Array) -> Array:
        """The utility's mean, float[N], of points float[N, m + 1]."""
        if not len(self._rows):
            return prior_mean(points)
        return prior_mean(points) + self._across(points) @ self._weights

    def covariance(self, points: Array) -> Array:
        """The utility's covariance, float[N, N]."""
        prior = self.kernel(points, points)
        if not len(self._rows):
            return prior
        explained = np.linalg.solve(self._factor, self._root[:, None] * self._across(points).T)
        return prior - explained.T @ explained

    def moments(self, points: Array) -> tuple[Array, Array]:
        """`mean`, and the variance: the diagonal of `covariance`."""
        prior = self.kernel.diagonal(points)
        if not len(self._rows):
            return prior_mean(points), prior
        across = self._across(points)
        explained = np.linalg.solve(self._factor, self._root[:, None] * across.T)
        variance = np.maximum(prior - np.square(explained).sum(axis=0), 1e-12)
        return prior_mean(points) + across @ self._weights, variance

    def variance(self, points: Array) -> Array:
        """The diagonal of `covariance`, float[N]."""
        return self.moments(points)[1]

    def _across(self, points: Array) -> Array:
        """The covariance of the utility at points with the votes' numbers, float[N, V]."""
        return self.kernel(points, self._points) @ self._rows.T


def likelihood(z: Array, signs: Array, ties: Array) -> Array:
    """The chance of every vote.

    Args:
        z: values of the votes' numbers, float[V, N].
        signs: 1 and -1 for the better option, 0 for a tie, float[V].
        ties: Davidson's nu, float[V].
    """
    small = np.exp(-np.abs(z) / 2)  # all is divided by exp(|z| / 2), so that nothing overflows
    square, sign = small * small, signs[:, None]
    total = 1 + square + ties[:, None] * small
    chosen = np.where(sign == 0, small, np.where(sign * z > 0, 1.0, square))
    return np.where(sign == 0, chosen / total, (1 - CARELESS) * chosen / total + CARELESS / 2)
