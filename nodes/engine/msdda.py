"""MSDDA as a sampler of the host. It needs every adapter's prediction for itself, so it is no model patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_sampling
import comfy.samplers
from comfy.k_diffusion.sampling import default_noise_sampler
from torch import Tensor
from tqdm.auto import trange

from ...blending.combine import combine
from ...blending.msdda import StepFactor, fuse_gaussians, step_factors
from ...blending.plans import Gates, Plan
from ...blending.schedules import Coefficient, Coefficients, CoefficientSchedule, coefficients_at, is_uniform
from ...blending.step_info import StepInfo
from ..adapters.files import RewardLoRAs
from ..host import Denoiser, Patcher
from ..schema import SamplingWithoutSampler
from .attach import attach
from .custom_sampling import sample_with

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ChosenRow:
    """A planner that runs the row which its owner has chosen. The sampler uses it to evaluate one adapter after another."""

    def __init__(self) -> None:
        self.row: tuple[Gates, ...] = ()

    def __call__(self, step: StepInfo) -> Plan:  # noqa: ARG002  the row does not depend on the step
        return Plan((self.row,), (1.0,))


@dataclass(frozen=True)
class Transition:
    """A Gaussian reverse step ``N(a x + b D, s^2)`` given an x0 prediction D.

    Args:
        a: factor on x.
        b: factor on D.
        s: standard deviation, or a number proportional to it where the deviations of all steps go to 0 together.
    """

    a: float
    b: float
    s: float


def ancestral_transition(sigma: float, sigma_next: float, eta: float) -> Transition:
    """The Euler ancestral step of variance-exploding form: ``mean = D + (sigma_down / sigma) (x - D)``, ``s = sigma_up``.

    ``sigma_up = min(sigma_next, eta sqrt(sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2))`` and
    ``sigma_down^2 = sigma_next^2 - sigma_up^2`` (Karras et al. 2022, arXiv 2206.00364; k-diffusion's ancestral step). At
    sigma_next = 0 the mean is D and s is the limit of ``sigma_up / sigma_next``.
    """
    share = min(1.0, eta * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2)))
    if sigma_next == 0:
        return Transition(0.0, 1.0, share)
    ratio = sigma_next * math.sqrt(1 - share**2) / sigma
    return Transition(ratio, 1 - ratio, sigma_next * share)


def flow_transition(sigma: float, sigma_next: float, eta: float) -> Transition:
    """The Euler ancestral step of rectified flow, ``x = (1 - sigma) x0 + sigma noise``.

    ``sigma_down = sigma_next (1 + (sigma_next / sigma - 1) eta)``. The step goes down to sigma_down and is then scaled and
    re-noised to sigma_next. At sigma_next = 0 the mean is D and s is the limit of ``s / sigma_next``. The deviation is in units
    of the model's ``noise_scale``.
    """
    if sigma_next == sigma:  # at the level of pure noise the scale below would be 0 / 0
        return Transition(1.0, 0.0, 0.0)
    share = max(0.0, 1 + (sigma_next / sigma - 1) * eta)
    if sigma_next == 0:
        return Transition(0.0, 1.0, math.sqrt(1 - share**2))
    down = sigma_next * share
    scale = (1 - sigma_next) / (1 - down)
    ratio = down / sigma
    return Transition(scale * ratio, scale * (1 - ratio), math.sqrt(max(0.0, sigma_next**2 - (down * scale) ** 2)))


def transition_of(sampling: Any) -> tuple[Callable[[float, float, float], Transition], float]:
    """Return the ancestral step of a model's kind, and the scale of its noise.

    Args:
        sampling: the host's ``model_sampling``.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return flow_transition, getattr(sampling, "noise_scale", 1.0)
    return ancestral_transition, 1.0


def sample_msdda(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    chosen: ChosenRow,
    coefficients: Coefficients | CoefficientSchedule,
    shares: Coefficients | CoefficientSchedule,
    etas: Sequence[float],
    renormalise: bool = False,
) -> Tensor:
    """Ancestral sampling whose step is the weighted product of several models' steps (MSDDA, arXiv 2604.14379).

    Args:
        model: the host's denoiser, ``(x, sigma) -> x0`` after guidance.
        x: noisy latents, float[B, ...].
        sigmas: noise levels, float[steps + 1], falling.
        extra_args: the host's, with the seed.
        callback: the host's, once a step.
        disable: no progress bar.
        chosen: the planner on the model, which is set to one row after the other.
        coefficients: the adapters' c, float[m], or a schedule of them.
        shares: the coefficients at KL scale 1; see `blending.msdda.step_factors`.
        etas: noise scale of the first adapters, above 0; see `adapter_etas`.
        renormalise: add noise up to the schedule's level, which unequal etas do not reach.

    Returns:
        Denoised latents, float[B, ...].
    """
    extra_args = extra_args or {}
    noise = default_noise_sampler(x, seed=extra_args.get("seed"))
    transition, noise_scale = transition_of(model.inner_model.inner_model.model_sampling)
    levels = [float(sigma) for sigma in sigmas]
    ones = x.new_ones([x.shape[0]])
    for i in trange(len(levels) - 1, disable=disable):
        step = StepInfo(i, len(levels) - 1)
        factors = factors_of(coefficients_at(coefficients, step), etas, coefficients_at(shares, step))
        mix = [factor.coefficient for factor in factors]
        predictions: dict[Gates, Tensor] = {}
        for gates in dict.fromkeys(factor.gates for factor in factors):
            chosen.row = (gates,)
            predictions[gates] = model(x, sigmas[i] * ones, **extra_args)
        denoised = [predictions[factor.gates] for factor in factors]
        if callback is not None:
            preview = combine((prediction.clone() for prediction in denoised), mix)
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": preview})
        steps = [transition(levels[i], levels[i + 1], factor.eta) for factor in factors]
        if levels[i] == levels[i + 1]:
            # Schedules of more steps than the model has levels repeat some. Nothing moves, and the host draws its noise.
            noise(sigmas[i], sigmas[i + 1])
            continue
        means = [x * step.a + prediction * step.b for prediction, step in zip(denoised, steps, strict=True)]
        x, deviation = fuse_gaussians(means, [step.s for step in steps], mix)
        if levels[i + 1] > 0:
            if renormalise:
                deviation = renormalised_deviation(steps, mix, levels[i], levels[i + 1])
            x = x + noise(sigmas[i], sigmas[i + 1]) * (deviation * noise_scale)
    return x


def renormalised_deviation(
    steps: Sequence[Transition], coefficients: Sequence[float], sigma: float, sigma_next: float
) -> float:
    """The standard deviation that brings the fused step to level sigma_next: ``sqrt(sigma_next^2 - (sum_i p_i a_i sigma)^2)``.

    ``p_i`` are the shares of the factors in the mean, ``p_i ~ c_i / s_i^2``. The mean retains ``sum_i p_i a_i`` of x's noise.
    """
    shares = [c / step.s**2 for c, step in zip(coefficients, steps, strict=True)]
    retained = sigma * math.fsum(p * step.a for p, step in zip(shares, steps, strict=True)) / math.fsum(shares)
    return math.sqrt(max(0.0, sigma_next**2 - retained**2))


def factors_of(
    coefficients: Sequence[Coefficient], etas: Sequence[float], shares: Sequence[Coefficient]
) -> tuple[StepFactor, ...]:
    """`step_factors` of coefficients that are the same in the whole image; adapters past the end of ``etas`` use 1."""
    numbers = [float(c) for c in coefficients]
    return step_factors(numbers, adapter_etas(etas, len(numbers)), [float(share) for share in shares])


def sample_with_msdda(
    model: Patcher,
    loras: RewardLoRAs,
    coefficients: Coefficients | CoefficientSchedule,
    shares: Coefficients | CoefficientSchedule,
    etas: Sequence[float],
    renormalise: bool,
    **sampling: Unpack[SamplingWithoutSampler],
) -> dict[str, Any]:
    """Run `sample_msdda` as the host's KSampler would: empty latents, masks, previews, progress bar.

    Args:
        model: the host's ModelPatcher.
        loras: the adapters.
        coefficients: the adapters' c.
        shares: the coefficients at KL scale 1.
        etas: noise scale of the first adapters; the others use 1.
        renormalise: see `sample_msdda`.
        sampling: what KSampler takes, without a sampler.

    Raises:
        ValueError: the coefficients differ within the image, or an eta is not a finite number above 0.
    """
    if not is_uniform(coefficients):
        raise ValueError(
            "MSDDA weighs whole steps, so it cannot have another preference in a region. Use Blended KSampler, or one preference "
            "for the whole image."
        )
    factors_of(
        coefficients_at(coefficients, StepInfo()), etas, coefficients_at(shares, StepInfo())
    )  # refuses wrong etas before the model is loaded
    chosen = ChosenRow()
    blended = attach(model, loras, chosen, images=sampling["latent_image"].get("batch_index"))
    options = {
        "chosen": chosen,
        "coefficients": coefficients,
        "shares": shares,
        "etas": etas,
        "renormalise": renormalise,
    }
    sampler = comfy.samplers.KSAMPLER(sample_msdda, extra_options=options)
    return sample_with(sampler, "euler_ancestral", blended, **sampling)


def adapter_etas(etas: Sequence[float], adapters: int) -> tuple[float, ...]:
    """The noise scale of every adapter: adapters past the end of ``etas`` use 1."""
    return tuple([*etas, *[1.0] * adapters][:adapters])
