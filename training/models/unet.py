"""How the trainer calls a diffusers UNet, and the DDIM run of its noise schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ..ddim import DdimSteps, ddim_steps


def call_unet(unet: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The output of a UNet, in its own dtype.

    Args:
        unet: UNet2DConditionModel.
        latents: noisy latents in the UNet's dtype, [B, C, H, W].
        timesteps: int64[B].
        conditioning: ``encoder_hidden_states``; SDXL also has its pooled embedding and the picture's size.
    """
    inputs = dict(conditioning)
    hidden = inputs.pop("encoder_hidden_states")
    return unet(latents, timesteps, encoder_hidden_states=hidden, added_cond_kwargs=inputs or None).sample


def ddim_run(scheduler: Mapping[str, Any], steps: int, eta: float, noisy: Iterable[int] | None = None) -> DdimSteps:
    """The coefficients of a run over a noise schedule, spaced as diffusers' DDIM scheduler spaces them.

    Each step leads to the next timestep of the list. diffusers leads it to ``t - N // steps``, which is the same when
    ``steps`` divides N = 1000, and one timestep beside it otherwise.

    Args:
        scheduler: diffusers scheduler configuration (betas, prediction type, spacing).
        steps: the number of steps.
        eta: noise scale, above 0 to 1.
        noisy: numbers of the steps with noise; None takes all.
    """
    ddim = DDIMScheduler.from_config(dict(scheduler))
    assert isinstance(ddim, DDIMScheduler)
    ddim.set_timesteps(steps)
    timesteps, final = torch.as_tensor(ddim.timesteps), float(ddim.final_alpha_cumprod)
    return ddim_steps(ddim.alphas_cumprod, timesteps, final, eta, ddim.config["prediction_type"], noisy)
