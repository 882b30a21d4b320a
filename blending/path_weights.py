"""Path weights: the importance weights that correct the samples of a blend, and their resampling.

A blended score is not the score of the geometric mean of the models' distributions ``q = prod_i p_i^c_i``. The product of
the models' *trajectories* is: with ``sum_i c_i = 1`` and equal noise, one reverse step has the identity

    prod_i N(x; mu_i, s^2)^c_i = N(x; mu, s^2) exp(-sum_i c_i ||mu_i - mu||^2 / (2 s^2)),    mu = sum_i c_i mu_i.

So a trajectory of the blend with weight ``W = prod_t exp(-sum_i c_i ||mu_i - mu||^2 / (2 s^2))`` belongs to q. This is the
Feynman-Kac corrector for geometric means (Skreta et al. 2025, arXiv 2503.02819) in discrete time. For converged KL-regularized
adapters, q is the distribution tuned for the weighted reward. Steps without noise carry no weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .combine import combine
from .plans import NEGLIGIBLE


def log_weight_change(means: Sequence[Tensor], coefficients: Sequence[float], deviation: float) -> Tensor:
    """Compute what one ancestral step adds to the logarithm of the path weights.

    ``log W += -sum_i c_i ||mu_i - mu||^2 / (2 s^2)``, with ``mu = sum_i c_i mu_i`` (see the module). The sum includes the base
    model with its coefficient ``1 - sum_i lambda w_i``. A negative coefficient (KL scale above 1) adds weight.

    Args:
        means: the models' means mu_i of the step, n times float[B, ...].
        coefficients: c, float[n], any sign, sum 1.
        deviation: s, the standard deviation of the step's noise; 0 for a step without noise.

    Returns:
        float64[B]; zeros for a step without noise.

    Raises:
        ValueError: the lengths differ, the coefficients do not sum to 1, or the deviation is negative or not finite.
    """
    if not len(means) == len(coefficients) > 0:
        raise ValueError(f"{len(means)} means for {len(coefficients)} coefficients: give as many of each.")
    if abs(math.fsum(coefficients) - 1) > 1e-6:
        raise ValueError(
            f"The coefficients {list(coefficients)} sum to {math.fsum(coefficients):g}: with the base model's they must sum to 1."
        )
    if not (math.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"The step's standard deviation is {deviation}: it must be a finite number of at least 0.")
    if deviation == 0 or len(means) == 1:
        return torch.zeros(means[0].shape[0], dtype=torch.float64, device=means[0].device)
    return disagreement(means, coefficients) / (-2 * deviation**2)


def disagreement(predictions: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Compute ``sum_i c_i ||x_i - x||^2`` around ``x = sum_i c_i x_i``, in double precision, float64[B].

    Args:
        predictions: n times float[B, ...].
        coefficients: c, float[n], any sign, sum 1.
    """
    middle = combine((prediction.clone() for prediction in predictions), list(coefficients))
    total = torch.zeros(middle.shape[0], dtype=torch.float64, device=middle.device)
    for prediction, coefficient in zip(predictions, coefficients, strict=True):
        if abs(coefficient) > NEGLIGIBLE:
            total += coefficient * (prediction - middle).double().square().flatten(1).sum(1)
    return total


def effective_share(log_weights: Tensor) -> Tensor:
    """Return the effective share of weighted samples: ``(sum W)^2 / (n sum W^2)`` (Kong 1992).

    1 for equal weights, 1 / n where a single sample has all the weight.

    Args:
        log_weights: float[..., n].

    Returns:
        float64[...].
    """
    count = log_weights.shape[-1]
    logarithms = log_weights.double()
    return (2 * logarithms.logsumexp(-1) - (2 * logarithms).logsumexp(-1)).exp() / count


def resample(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Choose as many samples as there are, each in proportion to its weight: systematic resampling.

    The points ``(u + j) / n``, j = 0 .. n - 1, are looked up in the cumulative weights (Kitagawa 1996). A sample of normalized
    weight W is chosen ``floor(n W)`` or ``ceil(n W)`` times, and on average ``n W`` times. Equal weights choose every sample
    once.

    Args:
        log_weights: float[groups, n].
        uniform: one number in [0, 1) for each group, float[groups].

    Returns:
        The chosen samples, int64[groups, n], rising.
    """
    count = log_weights.shape[-1]
    # Away from 0 and 1 by more than rounding, so that equal weights choose every sample once.
    inside = uniform.double().clamp(1e-9, 1 - 1e-9)
    points = (inside[:, None] + torch.arange(count, device=log_weights.device)) / count
    return _look_up(log_weights, points)


def draw_one(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw one sample of each group in proportion to its weight.

    Args:
        log_weights: float[groups, n].
        uniform: one number in [0, 1) for each group, float[groups].

    Returns:
        The drawn sample, int64[groups].
    """
    return _look_up(log_weights, uniform.double()[:, None])[:, 0]


def _look_up(log_weights: Tensor, points: Tensor) -> Tensor:
    cumulative = log_weights.double().softmax(-1).cumsum(-1)
    # The last edge is 1 up to rounding, so a point beyond it belongs to the last sample.
    return torch.searchsorted(cumulative[:, :-1].contiguous(), points.contiguous(), right=True)


class Particles:
    """The log weights of groups of particles, resampled where they have become unequal.

    Args:
        groups: the number of groups; each makes one sample.
        count: particles in a group.
        resample_below: a group is resampled where its effective share falls below this number.
        device: of the weights.
    """

    def __init__(self, groups: int, count: int, resample_below: float, device: torch.device | str = "cpu") -> None:
        if count < 1:
            raise ValueError(f"particles is {count}: at least 1 is needed.")
        if not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below is {resample_below}: it is an effective share, from 0 to 1.")
        self.log_weights = torch.zeros((groups, count), dtype=torch.float64, device=device)
        self.resample_below = resample_below
        self.shares: list[Tensor] = []
        self.resamplings = 0

    def advance(self, change: Tensor, uniform: Tensor) -> Tensor | None:
        """Add a step's change to the weights, and resample the groups that need it.

        Args:
            change: of `log_weight_change`, float[groups, count].
            uniform: one number in [0, 1) for each group, float[groups].

        Returns:
            The particles that go on, int64[groups, count], or None where all do. Resampled groups have equal weights again.
        """
        self.log_weights = self.log_weights + change
        share = effective_share(self.log_weights)
        self.shares.append(share)
        needed = share < self.resample_below
        if not bool(needed.any()):
            return None
        self.resamplings += int(needed.sum())
        count = self.log_weights.shape[1]
        every = torch.arange(count, device=share.device).expand_as(self.log_weights)
        chosen = torch.where(needed[:, None], resample(self.log_weights, uniform), every)
        self.log_weights = torch.where(needed[:, None], 0.0, self.log_weights)
        return chosen
