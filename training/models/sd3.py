"""Stable Diffusion 3 and 3.5: a multimodal transformer on flow matching, two CLIP encoders and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .diffusers_model import Base
from .flow_base import transformer_base
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import image_side


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a StableDiffusion3Pipeline apart; see `bases.base_from_pipeline`."""
    config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
    side = image_side(resolution, config.sample_size * scale, scale * config.patch_size, name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        texts = list(prompts)

        def run() -> tuple[Tensor, ...]:
            return pipeline.encode_prompt(texts, None, None, device=device, do_classifier_free_guidance=True)

        encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        prompt, empty, pooled, empty_pooled = visiting(encoders, device, run)
        return Conditioning(
            {"encoder_hidden_states": prompt, "pooled_projections": pooled},
            {"encoder_hidden_states": empty, "pooled_projections": empty_pooled},
            pooled.float(),
        )

    return transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="sd3",
        channels=config.in_channels,
        patch=config.patch_size,
        encode=encode,
        call=_call,
    )


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return network(hidden_states=latents, timestep=timesteps, return_dict=False, **conditioning)[0]
