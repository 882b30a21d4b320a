"""Flux.1: a transformer on packed latents with distilled guidance, one CLIP encoder and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flow import TIMESTEPS
from .diffusers_model import Base
from .flow_base import transformer_base
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import image_side

_DEFAULT_SIDE = 1024
_DISTILLED_GUIDANCE = 3.5
"""The guidance that Flux.1-dev gets as an input, as in diffusers' pipeline. `sampling.guidance_scale` 1 adds no second pass."""


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a FluxPipeline apart; see `bases.base_from_pipeline`."""
    side = image_side(resolution, _DEFAULT_SIDE, 2 * pipeline.vae_scale_factor, name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        texts = [*prompts, *([""] * len(prompts))]

        def run() -> tuple[Tensor, ...]:
            return pipeline.encode_prompt(texts, None, device=device)[:2]

        words, pooled = visiting((pipeline.text_encoder, pipeline.text_encoder_2), device, run)
        (prompt, empty), (one, other) = words.chunk(2), pooled.chunk(2)
        return Conditioning(
            {"encoder_hidden_states": prompt, "pooled_projections": one},
            {"encoder_hidden_states": empty, "pooled_projections": other},
            one.float(),
        )

    return transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="flux",
        channels=pipeline.transformer.config.in_channels // 4,
        patch=2,
        encode=encode,
        call=_call,
        even=True,
    )


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    rows, channels, height, width = latents.shape
    words = conditioning["encoder_hidden_states"]
    places = torch.zeros(height // 2, width // 2, 3, device=latents.device, dtype=latents.dtype)
    places[..., 1] += torch.arange(height // 2, device=latents.device)[:, None]
    places[..., 2] += torch.arange(width // 2, device=latents.device)[None, :]
    guidance = latents.new_full((rows,), _DISTILLED_GUIDANCE) if network.config.guidance_embeds else None
    output = network(
        hidden_states=pack(latents),
        timestep=(timesteps / TIMESTEPS).to(latents.dtype),
        guidance=guidance,
        txt_ids=latents.new_zeros(words.shape[1], 3),
        img_ids=places.flatten(0, 1),
        return_dict=False,
        **conditioning,
    )[0]
    return unpack(output, channels, height, width)


def pack(latents: Tensor) -> Tensor:
    """Tokens of 2 x 2 latent pixels: [B, C, H, W] -> [B, H/2 W/2, 4 C]."""
    rows, channels, height, width = latents.shape
    grid = latents.view(rows, channels, height // 2, 2, width // 2, 2)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(rows, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, channels: int, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    grid = tokens.view(len(tokens), height // 2, width // 2, channels, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), channels, height, width)
