"""The sampler of the studies: DDIM with eta = 1, which in this form is the ancestral Euler step of k-diffusion."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float, int], Tensor]
"""(x float[B, d], sigma, step index) -> prediction of x0, float[B, d]."""

SIGMA_MAX = 20.0
SIGMA_MIN = 0.02


def schedule(steps: int, sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN) -> list[float]:
    """Noise levels spaced as Karras et al. 2022 (arXiv 2206.00364, eq. 5, rho = 7), and a final 0: float[steps + 1]."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    ends = sigma_max ** (1 / 7), sigma_min ** (1 / 7)
    return [*((ends[0] + ramp * (ends[1] - ends[0])) ** 7).tolist(), 0.0]


def split(sigma: float, following: float) -> tuple[float, float]:
    """How far an ancestral step goes down, and the noise it then adds: ``down^2 + up^2 = following^2``.

    ``up^2 = following^2 (sigma^2 - following^2) / sigma^2``: the exact posterior variance of ``x_next`` given ``x0``.
    """
    up = following * max(0.0, 1 - (following / sigma) ** 2) ** 0.5
    return (following**2 - up**2) ** 0.5, up


def sample(denoise: Denoise, start: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Run the reverse process.

    ``x_next = D + (down / sigma) (x - D) + up * noise``, with ``D = denoise(x, sigma, index)``.

    Args:
        denoise: the model.
        start: unit noise, float[B, d]; the same start and generator state give every method the same randomness.
        steps: how many.
        generator: of the noise added.

    Returns:
        Samples, float[B, d].
    """
    sigmas = schedule(steps)
    x = start * sigmas[0]
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, sigma, index)
        down, up = split(sigma, following)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = denoised + (down / sigma) * (x - denoised) + up * noise
    return x
