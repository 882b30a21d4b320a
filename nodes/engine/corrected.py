"""The corrected blend as a sampler of the host: several candidates for each image, resampled by their path weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from torch import Tensor
from tqdm.auto import trange

from ...blending.combine import combine
from ...blending.path_weights import Particles, draw_one, log_weight_change
from ...blending.plans import Gates, base_coefficient, is_significant, unit_row
from ...blending.schedules import Coefficients, CoefficientSchedule, coefficients_at, is_uniform
from ...blending.step_info import StepInfo
from ..adapters.files import RewardLoRAs
from ..host import Denoiser, Patcher
from ..schema import SamplingWithoutSampler
from .attach import attach
from .custom_sampling import sample_with
from .gated import CANDIDATE
from .msdda import ChosenRow, transition_of
from .notices import notify

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEGENERATE = 1.5
"""Candidates that an image has in effect; below this number one candidate has nearly all the weight."""


class CandidateNoise:
    """The noise of each candidate. Candidate 0 has the noise of the host's own run with the seed.

    Args:
        seed: of the run; None takes 0.
        batch_index: the latent's own indices, None for 0, 1, 2, ...
    """

    def __init__(self, seed: int | None, batch_index: Sequence[int] | None) -> None:
        self._seed, self._batch_index = seed or 0, batch_index

    def seed_of(self, candidate: int) -> int:
        """The candidate's own seed, below 2^63."""
        if candidate == 0:
            return self._seed
        digest = hashlib.blake2b(f"{self._seed} candidate {candidate}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def start(self, candidate: int, like: Tensor) -> Tensor:
        """The candidate's starting noise, as the host makes it of a seed, float[B, ...]."""
        return comfy.sample.prepare_noise(like, self.seed_of(candidate), self._batch_index).to(like)

    def uniform(self, images: int) -> torch.Generator:
        """The generator of the resampling's uniform numbers."""
        return torch.Generator().manual_seed(self.seed_of(2**32 + images))


def models_of(coefficients: Sequence[float]) -> list[tuple[Gates, float]]:
    """The rows of gates with a coefficient, and last the base model's, where it has one."""
    count = len(coefficients)
    every = (*coefficients, base_coefficient(coefficients))
    return [(unit_row(i, count), c) for i, c in enumerate(every) if is_significant(c)]


def sample_corrected(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    chosen: ChosenRow,
    coefficients: Coefficients | CoefficientSchedule,
    particles: int,
    resample_below: float,
    batch_index: Sequence[int] | None = None,
) -> Tensor:
    """Ancestral Euler run of the blend with several candidates for each image, resampled by their path weights.

    The candidates are evaluated one after the other, so memory holds one candidate's activations. See `blending.path_weights`.

    Args:
        model: the host's denoiser, ``(x, sigma) -> x0`` after guidance.
        x: noisy latents, float[B, ...].
        sigmas: noise levels, float[steps + 1], falling.
        extra_args: the host's, with the seed.
        callback: the host's, once a step; it gets each image's candidate of most weight.
        disable: no progress bar.
        chosen: the planner on the model, which is set to one row after the other.
        coefficients: the adapters' c, float[m], or a schedule of them.
        particles: K, candidates for each image.
        resample_below: see `blending.path_weights.Particles`.
        batch_index: the latent's own indices.

    Returns:
        Denoised latents, float[B, ...]: of each image one candidate, drawn by its weight.
    """
    extra_args = extra_args or {}
    noise = CandidateNoise(extra_args.get("seed"), batch_index)
    samplers = [default_noise_sampler(x, seed=_seed(noise, extra_args, k)) for k in range(particles)]
    transition, noise_scale = transition_of(model.inner_model.inner_model.model_sampling)
    weights = Particles(x.shape[0], particles, resample_below)
    uniform = noise.uniform(x.shape[0])
    candidates = _start(model, x, sigmas, noise, particles)
    levels = [float(sigma) for sigma in sigmas]
    largest = 0.0
    for i in trange(len(levels) - 1, disable=disable):
        models = models_of([float(c) for c in coefficients_at(coefficients, StepInfo(i, len(levels) - 1))])
        largest = max(largest, *(abs(c) for _, c in models))
        step = transition(levels[i], levels[i + 1], 1.0)
        deviation = step.s * noise_scale if levels[i + 1] > 0 else 0.0
        mix = [c for _, c in models]
        denoised: list[Tensor] = []
        changes: list[Tensor] = []
        for k, candidate in enumerate(candidates):
            predictions = _predict(model, candidate, sigmas[i], extra_args, chosen, models, k)
            means = [candidate * step.a + prediction * step.b for prediction in predictions]
            changes.append(log_weight_change(means, mix, deviation).cpu())
            denoised.append(combine(predictions, mix))
        if callback is not None:
            best = weights.log_weights.argmax(1)
            shown = {"x": _chosen(candidates, best), "denoised": _chosen(denoised, best)}
            callback(shown | {"i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
        candidates = [candidate * step.a + d * step.b for candidate, d in zip(candidates, denoised, strict=True)]
        if levels[i + 1] > 0:
            for k, draw in enumerate(samplers):
                candidates[k] = candidates[k] + draw(sigmas[i], sigmas[i + 1]) * deviation
        kept = weights.advance(torch.stack(changes, 1), torch.rand(x.shape[0], generator=uniform))
        if kept is not None:
            candidates = [_chosen(candidates, kept[:, k]) for k in range(particles)]
    if particles > 1:
        notify(report(weights, largest))
    return _chosen(candidates, draw_one(weights.log_weights, torch.rand(x.shape[0], generator=uniform)))


def _seed(noise: CandidateNoise, extra_args: dict[str, Any], candidate: int) -> int | None:
    return extra_args.get("seed") if candidate == 0 else noise.seed_of(candidate)


def _start(model: Denoiser, x: Tensor, sigmas: Tensor, noise: CandidateNoise, particles: int) -> list[Tensor]:
    """The candidates' noisy latents at the first level. Candidate 0 has the host's."""
    host: Any = model
    sampling = host.inner_model.inner_model.model_sampling
    at_most = comfy.samplers.KSAMPLER(None).max_denoise(host.inner_model, sigmas)
    return [
        x,
        *(
            sampling.noise_scaling(sigmas[0], noise.start(k, x), host.latent_image, at_most).to(x)
            for k in range(1, particles)
        ),
    ]


def _predict(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    extra_args: dict[str, Any],
    chosen: ChosenRow,
    models: Sequence[tuple[Gates, float]],
    candidate: int,
) -> list[Tensor]:
    """Every model's prediction for one candidate. What the network holds from call to call is each candidate's own."""
    options = extra_args.get("model_options", {}).copy()
    options["transformer_options"] = {**options.get("transformer_options", {}), CANDIDATE: candidate}
    found: list[Tensor] = []
    for gates, _ in models:
        comfy.model_management.throw_exception_if_processing_interrupted()
        chosen.row = (gates,)
        found.append(model(x, sigma * x.new_ones([x.shape[0]]), **{**extra_args, "model_options": options}))
    return found


def _chosen(candidates: Sequence[Tensor], which: Tensor) -> Tensor:
    """Of each image one candidate, float[B, ...]."""
    return torch.stack([candidates[k][image] for image, k in enumerate(which.tolist())])


def report(weights: Particles, largest: float) -> str:
    """What the weights of a run were, in words for the artist.

    Args:
        weights: at the end of the run.
        largest: the largest size of a coefficient in the run; above 1 where the KL scale is above 1 or below 0.
    """
    images, count = weights.log_weights.shape
    shares = torch.stack(weights.shares)
    text = (
        f"The {count} candidates of an image count as {count * float(shares.mean()):.1f} equal ones, on average over the steps; "
        f"an image was resampled {weights.resamplings / images:.1f} times."
    )
    if float((shares * count < DEGENERATE).double().mean()) < 0.1:
        return text
    text += " At many steps one candidate has nearly all the weight, so the correction is only a part of the exact one."
    if largest > 1 + 1e-6:
        return f"{text} A KL scale above 1 makes the weights unequal: bring it closer to 1, or use more particles."
    return f"{text} Use more particles."


def sample_with_correction(
    model: Patcher,
    loras: RewardLoRAs,
    coefficients: Coefficients | CoefficientSchedule,
    particles: int,
    resample_below: float,
    **sampling: Unpack[SamplingWithoutSampler],
) -> dict[str, Any]:
    """Run `sample_corrected` as the host's KSampler would: empty latents, masks, previews, progress bar.

    Raises:
        ValueError: the coefficients differ within the image, or the particles or the share are impossible.
    """
    if not is_uniform(coefficients):
        raise ValueError(
            "The corrected blend weighs whole images, so it cannot have another preference in a region. Use Blended KSampler, or "
            "one preference for the whole image."
        )
    Particles(1, particles, resample_below)  # refuses impossible numbers before the model is loaded
    chosen = ChosenRow()
    batch_index = sampling["latent_image"].get("batch_index")
    blended = attach(model, loras, chosen, images=batch_index)
    options = {
        "chosen": chosen,
        "coefficients": coefficients,
        "particles": particles,
        "resample_below": resample_below,
        "batch_index": batch_index,
    }
    sampler = comfy.samplers.KSAMPLER(sample_corrected, extra_options=options)
    return sample_with(sampler, "euler_ancestral", blended, **sampling)
