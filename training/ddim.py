"""The denoising policy: each noisy DDIM step is a Gaussian with a known mean and standard deviation.

All functions are pure. Sums over a latent's elements are computed in float64, because a latent of 16384 elements has
log-probabilities of order 1e4 and importance ratios depend on differences of order 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class DdimSteps:
    """The coefficients of a sampling run: ``x_prev ~ N(state * x + output * network(x, t), std^2)`` at each step.

    Attributes:
        timesteps: training timesteps, int64[T], noisiest first.
        state: factor of the noisy latent in the mean, float64[T].
        output: factor of the network's output in the mean, float64[T]; ``c_t`` of the closed-form KL.
        std: standard deviation of the step, float64[T], latent units; 0 is a step without noise.
        alpha_bar: share of the signal's variance before the step, float64[T].
        prediction_type: the quantity that the network predicts.
        x0_output: factor of the network's output in its x0 prediction, float64[T].
    """

    timesteps: Tensor
    state: Tensor
    output: Tensor
    std: Tensor
    alpha_bar: Tensor
    prediction_type: PredictionType
    x0_output: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def noisy(self) -> Tensor:
        """The steps with noise, int64[<=T]. A step without noise has no density, so it counts as a part of the decoder."""
        return torch.nonzero(self.std > 0).flatten()


def ddim_steps(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    final_alpha_cumprod: float,
    eta: float,
    prediction_type: PredictionType,
) -> DdimSteps:
    """Write the DDIM sampler as a Gaussian policy.

    ``s_t^2 = eta^2 (1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev)`` and
    ``mean = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - s_t^2) eps``
    (DDIM, Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), with x0 and eps written as affine functions of the
    network's output (v: Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    Args:
        alphas_cumprod: abar at every training timestep, float[N], in (0, 1).
        timesteps: the run's timesteps, int64[T], strictly falling.
        final_alpha_cumprod: abar after the last step, in (0, 1]; 1 makes the last step noiseless.
        eta: noise scale, above 0 (there is no policy without noise) up to 1 (DDPM). The authors use 1.
        prediction_type: the quantity that the network predicts.

    Returns:
        The coefficients of every step.

    Raises:
        ValueError: eta outside (0, 1], timesteps that do not fall, a prediction type that is not known, or
            epsilon prediction at abar = 0.
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta is {eta}: it must be above 0 (without noise there is no policy to train) and at most 1")
    if bool((timesteps[1:] >= timesteps[:-1]).any()):
        raise ValueError(f"timesteps {timesteps.tolist()} do not fall: ask for fewer denoising steps")
    alpha_bar = alphas_cumprod.double().cpu()[timesteps.cpu()]
    previous = torch.cat([alpha_bar[1:], torch.tensor([final_alpha_cumprod], dtype=torch.float64)])
    if prediction_type != "v_prediction" and bool((alpha_bar <= 0).any()):
        raise ValueError(
            f"{prediction_type} prediction with a zero terminal SNR (abar 0 at timestep {int(timesteps[0])}): "
            "only v prediction is defined there"
        )
    variance = eta**2 * (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)
    noise = (1 - previous - variance).clamp(min=0).sqrt()  # factor of eps in the mean
    x0_state, x0_output, eps_state, eps_output = _parametrisation(alpha_bar, prediction_type)
    return DdimSteps(
        timesteps=timesteps.cpu().long(),
        state=previous.sqrt() * x0_state + noise * eps_state,
        output=previous.sqrt() * x0_output + noise * eps_output,
        std=variance.sqrt(),
        alpha_bar=alpha_bar,
        prediction_type=prediction_type,
        x0_output=x0_output,
    )


def _parametrisation(alpha_bar: Tensor, prediction_type: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 = a x + b out, eps = c x + d out: the factors (a, b, c, d), float64[T] each."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    if prediction_type == "epsilon":
        return 1 / signal, -noise / signal, zero, one
    if prediction_type == "v_prediction":
        return signal, -noise, noise, signal
    if prediction_type == "sample":
        return zero, one, 1 / noise, -signal / noise
    raise ValueError(f"prediction type {prediction_type!r}: this trainer knows epsilon, v_prediction and sample")


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


def step_mean(steps: DdimSteps, index: Tensor, latents: Tensor, output: Tensor) -> Tensor:
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


def step_std(steps: DdimSteps, index: Tensor, like: Tensor) -> Tensor:
    """Standard deviation of the policy's Gaussian at one step, float32[B, 1, 1, 1] on ``like``'s device."""
    return _rows(steps.std, index, like)


def noise_to_level(steps: DdimSteps, index: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Add noise to clean latents up to the level at which a step starts: ``x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps``.

    Args:
        steps: the sampler's coefficients.
        index: the step that each row starts, int64[B].
        clean: x_0, float[B, C, H, W].
        noise: eps, standard normal, same shape.

    Returns:
        Noisy latents, float32[B, C, H, W].
    """
    return (
        _rows(steps.alpha_bar.sqrt(), index, clean) * clean + _rows((1 - steps.alpha_bar).sqrt(), index, clean) * noise
    )


def training_target(steps: DdimSteps, index: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """The network's target at `noise_to_level`'s latents: eps, ``v = sqrt(abar) eps - sqrt(1 - abar) x_0``, or x_0.

    Args:
        steps, index, clean, noise: as for `noise_to_level`.

    Returns:
        Targets, float32[B, C, H, W].
    """
    if steps.prediction_type == "epsilon":
        return noise
    if steps.prediction_type == "sample":
        return clean
    return (
        _rows(steps.alpha_bar.sqrt(), index, clean) * noise - _rows((1 - steps.alpha_bar).sqrt(), index, clean) * clean
    )


def _rows(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return values[index.cpu()].to(device=like.device, dtype=torch.float32).view(-1, 1, 1, 1)


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
    scale = std.double().flatten()
    distance = (sample.double() - mean.double()).square().flatten(1).sum(1)
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
    distance = (mean.double() - reference.double()).square().flatten(1).sum(1)
    return distance / (2 * std.double().flatten().square())
