"""A run of a sampler object, as ComfyUI's KSampler would run it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ..host import Patcher, Sampler
from ..schema import SamplingWithoutSampler, check_finite

if TYPE_CHECKING:
    from typing_extensions import Unpack


def sample_with(
    sampler: Sampler, like: str, model: Patcher, **sampling: Unpack[SamplingWithoutSampler]
) -> dict[str, Any]:
    """Run a sampler object: empty latents, masks, previews, progress bar and noise as in KSampler.

    Args:
        sampler: the host's sampler object.
        like: the name of a host sampler with the same schedule.
        model: the host's ModelPatcher.
        sampling: the inputs of KSampler.

    Returns:
        The denoised latent, with the other entries of the given one.
    """
    check_finite(cfg=sampling["cfg"], denoise=sampling["denoise"])
    latent_image, steps, seed = sampling["latent_image"], sampling["steps"], sampling["seed"]
    schedule = comfy.samplers.KSampler(
        model, steps, model.load_device, like, sampling["scheduler"], sampling["denoise"], model.model_options
    ).sigmas
    latent = _latent(model, latent_image)
    samples = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index")),
        sampling["cfg"],
        sampler,
        schedule,
        sampling["positive"],
        sampling["negative"],
        latent,
        noise_mask=latent_image.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    dropped = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # they describe the empty latent, not the result
    return {key: value for key, value in latent_image.items() if key not in dropped} | {"samples": samples}


def _latent(model: Patcher, latent_image: dict[str, Any]) -> Tensor:
    """The latent with the channels and sizes of this model. The arguments of the host's function differ by version."""
    fix = comfy.sample.fix_empty_latent_channels
    known = inspect.signature(fix).parameters
    ratios = {
        name: latent_image.get(name)
        for name in ("downscale_ratio_spacial", "downscale_ratio_temporal")
        if name in known
    }
    return fix(model, latent_image["samples"], **ratios)
