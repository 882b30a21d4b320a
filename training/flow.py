"""Flow matching as a Gaussian policy: the SDE of Flow-GRPO with the marginals of the flow's ODE."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .policy import PolicySteps, noisy_indicator

TIMESTEPS = 1000
"""Networks of diffusers take the time t in 0..1 as ``1000 t``."""


def flow_steps(sigmas: Tensor, eta: float, noisy: Iterable[int] | None = None) -> PolicySteps:
    """Write the sampler of a flow-matching network as a Gaussian policy.

    ``x_t = (1 - t) x_0 + t eps``, the network gives ``v = eps - x_0``. With ``s_t = eta sqrt(t / (1 - t))``:
    ``x_{t - dt} = x_t - dt [v + s_t^2 / (2 t) (x_t + (1 - t) v)] + s_t sqrt(dt) noise`` (Flow-GRPO, Liu et al. 2025,
    arXiv 2505.05470, eq. 9). At t = 1, where s_t is infinite, the next step's time stands in the denominator, as in the
    authors' code.

    Args:
        sigmas: the times t of the run, float[T + 1], falling, from at most 1 to 0.
        eta: noise scale, above 0; the authors use 0.7.
        noisy: numbers of the steps with noise. The others are Euler steps of the ODE. None takes all.

    Returns:
        The coefficients of every step.

    Raises:
        ValueError: eta that is not above 0, or times that do not fall from at most 1.
    """
    if not eta > 0:
        raise ValueError(f"eta is {eta}: it must be above 0 (without noise there is no policy to train)")
    times = sigmas.cpu().double()
    if bool((times[1:] >= times[:-1]).any()) or float(times[0]) > 1 or float(times[-1]) < 0:
        raise ValueError(f"times {times.tolist()} do not fall from 1 to 0: ask for fewer denoising steps")
    t, dt = times[:-1], times[:-1] - times[1:]
    below_one = torch.where(t < 1, t, times[1:])
    squared = eta**2 * t / (1 - below_one) * noisy_indicator(noisy, len(t))  # s_t^2
    return PolicySteps(
        timesteps=(t * TIMESTEPS).float(),
        state=1 - dt * squared / (2 * t),
        output=-dt * (1 + squared * (1 - t) / (2 * t)),
        std=(squared * dt).sqrt(),
        signal=1 - t,
        noise=t,
        target_clean=-torch.ones_like(t),
        target_noise=torch.ones_like(t),
        x0_output=-t,
        snr=((1 - t) / t).square(),
        x0_divisor=1 / t.square(),
    )
