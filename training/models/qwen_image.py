"""Qwen-Image: a two-stream transformer on packed latents with Qwen2.5-VL's text features and a video VAE.

Guidance is plain, as ComfyUI applies it. diffusers' pipeline also rescales the guided output to the norm of the conditional one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flow import TIMESTEPS
from .diffusers_model import Base
from .flow_base import masked_mean, transformer_base
from .flux import pack, unpack
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import FrameDecoder, image_side

_DEFAULT_SIDE = 1024
_TOKENS = 512
"""The longest text, as in diffusers' pipeline."""


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a QwenImagePipeline apart; see `bases.base_from_pipeline`."""
    side = image_side(resolution, _DEFAULT_SIDE, 2 * pipeline.vae_scale_factor, name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        def run() -> tuple[Tensor, ...]:
            return *_words(pipeline, list(prompts), device), *_words(pipeline, [""] * len(prompts), device)

        prompt, mask, empty, empty_mask = visiting((pipeline.text_encoder,), device, run)
        return Conditioning(
            {"encoder_hidden_states": prompt, "encoder_hidden_states_mask": mask},
            {"encoder_hidden_states": empty, "encoder_hidden_states_mask": empty_mask},
            masked_mean(prompt, mask),
        )

    return transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="qwen_image",
        channels=pipeline.transformer.config.in_channels // 4,
        patch=2,
        encode=encode,
        call=_call,
        even=True,
        decode=FrameDecoder(pipeline.vae.to(device)),
    )


def _words(pipeline: Any, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Features and mask; the pipeline leaves out a mask that covers everything."""
    features, mask = pipeline.encode_prompt(texts, device, max_sequence_length=_TOKENS)
    return features, torch.ones(features.shape[:2], dtype=torch.int64) if mask is None else mask


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    rows, channels, height, width = latents.shape
    output = network(
        hidden_states=pack(latents),
        timestep=(timesteps / TIMESTEPS).to(latents.dtype),
        img_shapes=[[(1, height // 2, width // 2)]] * rows,
        return_dict=False,
        **conditioning,
    )[0]
    return unpack(output, channels, height, width)
