"""Expectation propagation: the posterior of the votes' numbers under a likelihood that need not be log-concave.

Each vote's likelihood is replaced by a Gaussian factor. Its product with all other factors has the mean and the variance that
the likelihood's product with them has (Minka 2001; Rasmussen and Williams 2006, section 3.6). All factors are updated at once, so
the order of the votes does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Likelihood = Callable[[Array], Array]

_NODES = np.linspace(-6.0, 6.0, 121)
_NODE_WEIGHTS = np.exp(-(_NODES**2) / 2)
"""The trapezoidal rule in standard deviations: exact for likelihoods that change over more than a tenth of one."""
_SWEEPS, _TOLERANCE = 200, 1e-6
_LEAST_PRECISION = 1e-8
"""A likelihood that is not log-concave can ask for a negative precision: the factor then only moves the mean."""


@dataclass(frozen=True)
class Factors:
    """The Gaussian factors, in the form that predictions need.

    Args:
        weights: float[V]; the mean at a point is the prior mean plus ``k weights``.
        root: sqrt(precision), float[V].
        factor: the Cholesky factor of ``I + root C root``, float[V, V].
    """

    weights: Array
    root: Array
    factor: Array


def propagate(covariance: Array, offset: Array, likelihood: Likelihood) -> Factors:
    """Update the factors until they no longer move.

    Args:
        covariance: C, the prior covariance of the votes' numbers, float[V, V].
        offset: their prior mean, float[V].
        likelihood: of numbers float[V, N], one row a vote.

    Returns:
        The factors. The steps are halved whenever they grow, so that many equal votes do not make them swing.
    """
    precision, shift = np.full(len(offset), _LEAST_PRECISION), np.zeros(len(offset))
    size, moved_before = 1.0, np.inf
    for _ in range(_SWEEPS):
        weights, variance = _moments(covariance, offset, precision, shift)
        wanted = _matched(offset + covariance @ weights, variance, precision, shift, likelihood)
        steps = wanted[0] - precision, wanted[1] - shift
        moved = max(float(np.abs(steps[0]).max()), float(np.abs(steps[1]).max()))
        if moved < _TOLERANCE:
            break
        size = size / 2 if moved > moved_before else min(1.0, size * 1.1)
        precision, shift, moved_before = precision + size * steps[0], shift + size * steps[1], moved
    weights = _moments(covariance, offset, precision, shift)[0]
    root = np.sqrt(precision)
    factor: Array = np.asarray(np.linalg.cholesky(np.eye(len(root)) + root[:, None] * covariance * root), float)
    return Factors(weights, root, factor)


def _moments(covariance: Array, offset: Array, precision: Array, shift: Array) -> tuple[Array, Array]:
    """The weights, and the variance of every number, under the factors."""
    root = np.sqrt(precision)
    inverse = np.linalg.inv(np.eye(len(root)) + root[:, None] * covariance * root)
    across = covariance @ (root[:, None] * inverse * root)
    pull = shift - precision * offset
    variance = np.diag(covariance) - (across * covariance).sum(axis=1)
    return pull - across.T @ pull, np.maximum(variance, 1e-12)


def _matched(
    mean: Array, variance: Array, precision: Array, shift: Array, likelihood: Likelihood
) -> tuple[Array, Array]:
    """The precision and the shift of every factor that give the moments of its likelihood times all other factors."""
    rest = 1 / np.maximum(1 / variance - precision, 1e-12)
    centre = rest * (mean / variance - shift)
    z = centre[:, None] + np.sqrt(rest)[:, None] * _NODES
    mass = likelihood(z) * _NODE_WEIGHTS
    mass /= mass.sum(axis=1, keepdims=True)
    tilted = (mass * z).sum(axis=1)
    spread = np.maximum((mass * np.square(z - tilted[:, None])).sum(axis=1), 1e-12)
    wanted = np.maximum(1 / spread - 1 / rest, _LEAST_PRECISION)
    return wanted, tilted * (wanted + 1 / rest) - centre / rest
