"""Z-Image: a single-stream transformer on flow matching with Qwen3's text features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flow import TIMESTEPS
from .diffusers_model import Base
from .flow_base import masked_mean, padded, transformer_base
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import image_side

_DEFAULT_SIDE = 1024


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a ZImagePipeline apart; see `bases.base_from_pipeline`.

    diffusers' pipeline counts its guidance from 0: its scale s is 1 + s here.
    """
    side = image_side(resolution, _DEFAULT_SIDE, 2 * pipeline.vae_scale_factor, name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        def run() -> tuple[Tensor, ...]:
            texts, empties = pipeline.encode_prompt(list(prompts), device, do_classifier_free_guidance=True)
            return *padded(texts), *padded(empties)

        prompt, mask, empty, empty_mask = visiting((pipeline.text_encoder,), device, run)
        return Conditioning(
            {"encoder_hidden_states": prompt, "mask": mask},
            {"encoder_hidden_states": empty, "mask": empty_mask},
            masked_mean(prompt, mask),
        )

    return transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="z_image",
        channels=pipeline.transformer.config.in_channels,
        patch=2,
        encode=encode,
        call=_call,
        even=True,
    )


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """The transformer takes lists of pictures and texts, time that runs from 0 to 1, and gives the negative velocity."""
    words, mask = conditioning["encoder_hidden_states"], conditioning["mask"].bool()
    pictures = list(latents[:, :, None].unbind())  # [B, C, H, W] -> B times [C, 1, H, W]
    time = (TIMESTEPS - timesteps) / TIMESTEPS
    texts = [row[kept] for row, kept in zip(words, mask, strict=True)]
    output = network(pictures, time.to(latents.dtype), texts, return_dict=False)[0]
    return -torch.stack(list(output))[:, :, 0]
