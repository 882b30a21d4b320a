"""The corrected blend in the Gaussian world: groups of particles along an ancestral run, resampled by their path weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blending.combine import combine
from ...blending.path_weights import Particles, draw_one, effective_share, log_weight_change
from .ancestral import schedule, split
from .mixture import GaussianMixture

Models = Sequence[Callable[[Tensor, float], Tensor]]
"""(x float[B, 2], sigma) -> prediction of x0, float[B, 2]; one for each coefficient."""


@dataclass(frozen=True)
class Corrected:
    """The samples of `corrected_blend`, and how unequal the weights were.

    Args:
        samples: float[groups, copies, 2].
        share: effective share of all samples by the weights of a run that is never resampled; of resampled runs, the mean over
            groups and steps of the share in a group, before it is resampled.
        resamplings: mean number in a group.
    """

    samples: Tensor
    share: float
    resamplings: float


def corrected_blend(
    models: Models,
    coefficients: Sequence[float],
    groups: int,
    count: int,
    steps: int,
    generator: torch.Generator,
    copies: int = 1,
    resample_below: float = 0.5,
    eta: float = 1.0,
) -> Corrected:
    """Run the blend with ``count`` particles for each sample, and draw one of them at the end by its path weight.

    Args:
        models: x0 predictions of one copy of the plane.
        coefficients: c of the models, float[n], sum 1.
        groups: the number of samples.
        count: particles for each; 1 is the plain blend.
        steps: of the schedule.
        generator: of all random numbers.
        copies: independent copies of the plane, which together are one point of ``2 copies`` dimensions.
        resample_below: see `blending.path_weights.Particles`.
        eta: noise scale of the steps; 0 is the ODE, whose steps carry no weight.
    """
    sigmas = schedule(steps)
    particles = Particles(groups, count, resample_below)
    x = sigmas[0] * torch.randn((groups * count * copies, 2), generator=generator)
    for sigma, following in itertools.pairwise(sigmas):
        up = eta * split(sigma, following)[1]
        down = (following**2 - up**2) ** 0.5
        means = [d + (down / sigma) * (x - d) for d in (model(x, sigma) for model in models)]
        joined = [mean.view(groups * count, 2 * copies) for mean in means]
        change = log_weight_change(joined, coefficients, up).view(groups, count)
        x = combine(means, list(coefficients)) + up * torch.randn(x.shape, generator=generator)
        chosen = particles.advance(change, torch.rand(groups, generator=generator)) if count > 1 else None
        if count == 1:
            particles.log_weights = particles.log_weights + change
        if chosen is not None:
            x = _taken(x.view(groups, count, -1), chosen).reshape(-1, 2)
    drawn = draw_one(particles.log_weights, torch.rand(groups, generator=generator))
    samples = _taken(x.view(groups, count, -1), drawn[:, None])[:, 0]
    shares = particles.shares or [effective_share(particles.log_weights[:, 0])]
    share = float(torch.stack(shares).mean())
    return Corrected(samples.view(groups, copies, 2), share, particles.resamplings / groups)


def _taken(x: Tensor, chosen: Tensor) -> Tensor:
    return x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[2]))


def denoiser(mixture: GaussianMixture) -> Callable[[Tensor, float], Tensor]:
    """Return a mixture's exact denoiser in single precision.

    Where all components have the same isotropic covariance ``v I``, as every tilt of the ring by these rewards has,
    ``D = (v x + sigma^2 sum_k p_k m_k) / (v + sigma^2)`` with ``p = softmax((m_k . x - |m_k|^2 / 2) / (v + sigma^2) + log w_k)``.
    """
    single = GaussianMixture(mixture.log_weights.float(), mixture.means.float(), mixture.covariances.float())
    variance = float(single.covariances[0, 0, 0])
    if not torch.allclose(single.covariances, variance * torch.eye(2).expand_as(single.covariances)):
        return single.denoised
    means, squares = single.means, single.means.square().sum(1) / 2

    def denoised(x: Tensor, sigma: float) -> Tensor:
        total = variance + sigma**2
        shares = torch.addmm(single.log_weights - squares / total, x, means.T, alpha=1 / total).softmax(-1)
        return torch.addmm(x, shares, means, beta=variance / total, alpha=sigma**2 / total)

    return denoised
