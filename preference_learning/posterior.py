"""The posterior of a utility given votes: Laplace's approximation for a Gaussian process with Davidson's model of ties.

Each vote speaks of one number, ``z = f(a) - f(b)``, so the approximation is made for the votes' numbers: their covariance is
``C = D K D'`` with a row of D per vote (Rasmussen and Williams 2006, algorithms 3.1 and 3.2; Chu and Ghahramani 2005).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .kernels import Kernel, gaussian_process, prior_mean
from .space import points_of
from .votes import BAD, EQUAL, FIRST, SECOND, Vote

Array = NDArray[np.float64]

TIES = 0.5
"""Davidson's nu: of two options of equal utility, a share nu / (2 + nu) of the votes says that they are equal."""
_SIGN = {FIRST: 1.0, SECOND: -1.0, EQUAL: 0.0}
_ITERATIONS, _TOLERANCE = 60, 1e-13


class Posterior:
    """The mean and the covariance of a person's utility at any points.

    A vote for a has the likelihood ``exp(z / 2) / (2 cosh(z / 2) + nu)``, a tie ``nu / (...)`` (Davidson 1970). "Both are bad"
    says that each is worse than the average option, whose utility is 0: two logistic votes. All are log-concave, so there is one
    mode, whatever the order of the votes and however much they contradict each other; and no single vote pulls harder than 1/2.

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
        self._weights, self._root, self._factor = _mode(covariance, offset, signs, ties)

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


def _mode(covariance: Array, offset: Array, signs: Array, ties: Array) -> tuple[Array, Array, Array]:
    """Newton's method with step halving: the mode's dual weights, sqrt(W), and the Cholesky factor of I + W^1/2 C W^1/2."""
    weights = np.zeros(len(signs))
    value = _log_likelihood(offset, signs, ties)
    for _ in range(_ITERATIONS):
        z = covariance @ weights + offset
        gradient, root, factor = _curvature(covariance, z, signs, ties)
        target = root**2 * (z - offset) + gradient
        inner = np.linalg.solve(factor.T, np.linalg.solve(factor, root * (covariance @ target)))
        step, size = target - root * inner - weights, 1.0
        while (reached := _objective(covariance, offset, weights + size * step, signs, ties)) < value and size > 1e-6:
            size /= 2
        weights = weights + size * step
        if reached - value < _TOLERANCE:
            break
        value = reached
    return weights, *_curvature(covariance, covariance @ weights + offset, signs, ties)[1:]


def _objective(covariance: Array, offset: Array, weights: Array, signs: Array, ties: Array) -> float:
    """The log posterior, up to a constant."""
    moved = covariance @ weights
    return _log_likelihood(moved + offset, signs, ties) - 0.5 * float(weights @ moved)


def _curvature(covariance: Array, z: Array, signs: Array, ties: Array) -> tuple[Array, Array, Array]:
    """The gradient of the log likelihood, sqrt(W), and the Cholesky factor."""
    gradient, curvature = _derivatives(z, signs, ties)
    root = np.sqrt(curvature)
    factor: Array = np.asarray(np.linalg.cholesky(np.eye(len(z)) + root[:, None] * covariance * root[None]), float)
    return gradient, root, factor


def _log_likelihood(z: Array, signs: Array, ties: Array) -> float:
    size = np.abs(z) / 2
    return float(np.sum(signs * z / 2 - size - np.log1p(np.exp(-2 * size) + ties * np.exp(-size))))


def _derivatives(z: Array, signs: Array, ties: Array) -> tuple[Array, Array]:
    """The gradient of the log likelihood in z, and minus its second derivative."""
    small = np.exp(-np.abs(z) / 2)  # everything is divided by exp(|z| / 2), so that nothing overflows
    total = 1 + small**2 + ties * small
    gradient = signs / 2 - np.sign(z) * (1 - small**2) / 2 / total
    return gradient, (2 * small**2 + ties * small * (1 + small**2) / 2) / 2 / total**2
