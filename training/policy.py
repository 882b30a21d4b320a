"""The denoising policy: each noisy step is a Gaussian whose mean is affine in the latent and the network's output.

All functions are pure. Latents are [B, C, H, W], or [B, C, F, H, W] of videos with F latent frames. Sums over a latent's
elements are computed in float64, because a latent of 16384 elements has log-probabilities of order 1e4 and importance ratios
depend on differences of order 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicySteps:
    """The coefficients of a sampling run: ``x_prev ~ N(state * x + output * network(x, t), std^2)`` at each step.

    Attributes:
        timesteps: the times that the network gets, int64[T] or float32[T], noisiest first.
        state: factor of the noisy latent in the mean, float64[T].
        output: factor of the network's output in the mean, float64[T]; ``c_t`` of the closed-form KL.
        std: standard deviation of the step, float64[T], latent units; 0 is a step without noise.
        signal: factor of the clean latent in the noisy one, float64[T].
        noise: factor of the noise in the noisy latent, float64[T].
        target_clean: factor of the clean latent in the network's regression target, float64[T].
        target_noise: factor of the noise in the network's regression target, float64[T].
        x0_output: factor of the network's output in its x0 prediction, float64[T].
        snr: signal-to-noise ratio ``signal^2 / noise^2``, float64[T].
        x0_divisor: the squared error of the output divided by the squared error of x0, float64[T].
    """

    timesteps: Tensor
    state: Tensor
    output: Tensor
    std: Tensor
    signal: Tensor
    noise: Tensor
    target_clean: Tensor
    target_noise: Tensor
    x0_output: Tensor
    snr: Tensor
    x0_divisor: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def noisy(self) -> Tensor:
        """The steps with noise, int64[<=T]. A step without noise has no density, so it counts as a part of the decoder."""
        return torch.nonzero(self.std > 0).flatten()


def noisy_indicator(noisy: Iterable[int] | None, count: int) -> Tensor:
    """1 for each noisy step and 0 for the others, float64[T].

    Args:
        noisy: the noisy steps; None takes all.
        count: the number T of steps.
    """
    if noisy is None:
        return torch.ones(count, dtype=torch.float64)
    return torch.zeros(count, dtype=torch.float64).index_fill(0, torch.tensor(list(noisy), dtype=torch.int64), 1.0)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance.

    ``out = uncond + scale (cond - uncond)`` (Ho and Salimans 2022, arXiv 2207.12598, eq. 6 in the form of the code).

    Args:
        conditional: network output with the prompt, float[B, C, H, W].
        unconditional: network output with the empty prompt, same shape.
        scale: 1 is no guidance; Stable Diffusion's usual value is 7.5.

    Returns:
        Guided output, same shape.
    """
    return unconditional + scale * (conditional - unconditional)


def step_mean(steps: PolicySteps, index: Tensor, latents: Tensor, output: Tensor) -> Tensor:
    """Mean of the policy's Gaussian at one step, ``state * x + output * network``.

    Args:
        steps: the sampler's coefficients.
        index: the step of each row, int64[B].
        latents: noisy latents, float[B, C, H, W].
        output: guided network output, same shape.

    Returns:
        Means, float32[B, C, H, W], latent units.
    """
    return _rows(steps.state, index, latents) * latents.float() + _rows(steps.output, index, latents) * output.float()


def step_std(steps: PolicySteps, index: Tensor, like: Tensor) -> Tensor:
    """Standard deviation of the policy's Gaussian at one step, float32[B, 1, 1, 1] on ``like``'s device."""
    return _rows(steps.std, index, like)


def noise_to_level(steps: PolicySteps, index: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Add noise to clean latents up to the level at which a step starts: ``x_t = signal x_0 + noise eps``.

    Args:
        steps: the sampler's coefficients.
        index: the step that each row starts, int64[B].
        clean: x_0, float[B, C, H, W].
        noise: eps, standard normal, same shape.

    Returns:
        Noisy latents, float32[B, C, H, W].
    """
    return _rows(steps.signal, index, clean) * clean + _rows(steps.noise, index, clean) * noise


def training_target(steps: PolicySteps, index: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """The network's target at `noise_to_level`'s latents, for example eps, or v, or the velocity ``eps - x_0``.

    Args:
        steps, index, clean, noise: as for `noise_to_level`.

    Returns:
        Targets, float32[B, C, H, W].
    """
    return _rows(steps.target_noise, index, clean) * noise + _rows(steps.target_clean, index, clean) * clean


def _rows(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return values[index.cpu()].to(device=like.device, dtype=torch.float32).view(-1, *[1] * (like.ndim - 1))


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's GPUs do not."""
    return device.type != "mps"


def exact(tensor: Tensor) -> Tensor:
    """A tensor in float64, with its gradient; on the CPU where its device has no float64."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


def gaussian_log_prob(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of a spherical Gaussian, summed over a latent's elements.

    ``log p = -sum (x - mean)^2 / (2 s^2) - n log s - n/2 log 2 pi``.

    Args:
        sample: float[B, C, H, W].
        mean: same shape.
        std: float[B, 1, 1, 1], above 0.

    Returns:
        Log-densities, float64[B], nats.
    """
    elements = sample[0].numel()
    scale = exact(std).flatten()
    distance = (exact(sample) - exact(mean)).square().flatten(1).sum(1)
    return -distance / (2 * scale.square()) - elements * scale.log() - elements / 2 * math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """KL divergence of two spherical Gaussians with equal standard deviation, summed over a latent's elements.

    ``KL = ||mean - reference||^2 / (2 s^2)`` = ``c_t^2 ||out - out_ref||^2 / (2 s^2)`` (DPOK, Fan et al. 2023,
    arXiv 2305.16381, eq. 12). The divergence is in nats: it is not averaged over elements, and it keeps its time weight.

    Args:
        mean: mean of the trained policy, float[B, C, H, W].
        reference: mean of the base policy, same shape.
        std: float[B, 1, 1, 1], above 0.

    Returns:
        Divergences, float64[B], nats.
    """
    distance = (exact(mean) - exact(reference)).square().flatten(1).sum(1)
    return distance / (2 * exact(std).flatten().square())
