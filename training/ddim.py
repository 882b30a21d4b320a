"""DDIM as a Gaussian policy, for networks that predict epsilon, v or x0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .policy import PolicySteps, noisy_indicator

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class DdimSteps(PolicySteps):
    """The coefficients of a DDIM run.

    Attributes:
        alpha_bar: share of the signal's variance before the step, float64[T].
        prediction_type: the quantity that the network predicts.
    """

    alpha_bar: Tensor
    prediction_type: PredictionType


def ddim_steps(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    final_alpha_cumprod: float,
    eta: float,
    prediction_type: PredictionType,
    noisy: Iterable[int] | None = None,
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
        noisy: numbers of the steps with noise. The others have eta 0. None takes all.

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
    alpha_bar = alphas_cumprod.cpu().double()[timesteps.cpu()]
    previous = torch.cat([alpha_bar[1:], torch.tensor([final_alpha_cumprod], dtype=torch.float64)])
    if prediction_type != "v_prediction" and bool((alpha_bar <= 0).any()):
        raise ValueError(
            f"{prediction_type} prediction with a zero terminal SNR (abar 0 at timestep {int(timesteps[0])}): "
            "only v prediction is defined there"
        )
    variance = (
        eta**2 * (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous) * noisy_indicator(noisy, len(timesteps))
    )
    noise = (1 - previous - variance).clamp(min=0).sqrt()  # factor of eps in the mean
    x0_state, x0_output, eps_state, eps_output = _parametrisation(alpha_bar, prediction_type)
    target_clean, target_noise = _target(alpha_bar, prediction_type)
    snr = alpha_bar / (1 - alpha_bar)
    return DdimSteps(
        timesteps=timesteps.cpu().long(),
        state=previous.sqrt() * x0_state + noise * eps_state,
        output=previous.sqrt() * x0_output + noise * eps_output,
        std=variance.sqrt(),
        signal=alpha_bar.sqrt(),
        noise=(1 - alpha_bar).sqrt(),
        target_clean=target_clean,
        target_noise=target_noise,
        x0_output=x0_output,
        snr=snr,
        x0_divisor={"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type],
        alpha_bar=alpha_bar,
        prediction_type=prediction_type,
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


def _target(alpha_bar: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    """The regression target is ``a x_0 + b eps``: the factors (a, b), float64[T] each."""
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return {
        "epsilon": (zero, one),
        "v_prediction": (-(1 - alpha_bar).sqrt(), alpha_bar.sqrt()),
        "sample": (one, zero),
    }[prediction_type]
