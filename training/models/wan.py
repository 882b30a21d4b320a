"""Wan 2.1: a video transformer on flow matching with UMT5's text features. Images are videos of one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..export import transformer_bytes
from .diffusers_model import Base
from .flow_base import transformer_base
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import FrameDecoder, image_side

_DEFAULT_SIDE = 480
_TOKENS = 512
"""The length of every text, as in diffusers' pipeline. The zeros after the words count in the attention."""
_COMFYUI_NAMES = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""The name of a block's layer in diffusers -> in Wan's own code, which ComfyUI and diffusers read."""
_OUTSIDE_BLOCKS = {
    "proj_out": "head.head",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
}
"""The same for the linear layers outside of blocks."""


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device, frames: int = 1) -> Base:
    """Take a WanPipeline apart; see `bases.base_from_pipeline`.

    With several frames a latent is [C, F, h, w]: the first of its F frames is the first frame of pixels, and each later one
    stands for 4 frames of pixels.

    Raises:
        ValueError: a base with two transformers, or with a time for each token (Wan 2.2); or a number of frames that is not 1
            more than a multiple of the VAE's 4.
    """
    if pipeline.transformer_2 is not None or pipeline.config.expand_timesteps:
        raise ValueError(
            f"base {name!r}: Wan 2.2 has two transformers or a time for each token; use a Wan 2.1 text-to-video base"
        )
    scale = pipeline.vae_scale_factor_spatial
    each = pipeline.vae_scale_factor_temporal
    if frames % each != 1:
        below = (frames - 1) // each * each + 1
        raise ValueError(
            f"base.frames {frames}: it must be 1 more than a multiple of {each} for {name}: take {below} or {below + each}"
        )
    side = image_side(resolution, _DEFAULT_SIDE, scale * pipeline.transformer.config.patch_size[1], name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        def run() -> tuple[Tensor, ...]:
            return pipeline.encode_prompt(list(prompts), device=device, max_sequence_length=_TOKENS)

        prompt, empty = visiting((pipeline.text_encoder,), device, run)
        features = prompt.float().mean(dim=1)
        return Conditioning({"encoder_hidden_states": prompt}, {"encoder_hidden_states": empty}, features)

    base = transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="wan",
        channels=pipeline.transformer.config.in_channels,
        patch=pipeline.transformer.config.patch_size[1],
        encode=encode,
        call=_call,
        pixels=scale,
        decode=FrameDecoder(pipeline.vae.to(device)),
        # with the names of Wan's own code: diffusion_model.blocks.0.self_attn.q.lora_A.weight
        save=partial(transformer_bytes, rename=_in_comfyui),
    )
    channels, height, width = base.latent_shape
    shape = (channels, height, width) if frames == 1 else (channels, (frames - 1) // each + 1, height, width)
    return replace(base, scheduler=dict(_euler(pipeline.scheduler).config), latent_shape=shape)


def _euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """Wan's folders name UniPC with a flow shift; the policy takes Euler steps at the same shift."""
    shift = scheduler.config.get("flow_shift", scheduler.config.get("shift", 1.0))
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    video = latents.ndim == 5
    frames = latents if video else latents[:, :, None]  # [B, C, H, W] -> [B, C, 1, H, W]
    output = network(hidden_states=frames, timestep=timesteps, return_dict=False, **conditioning)[0]
    return output if video else output[:, :, 0]


def _in_comfyui(key: str) -> str:
    layer, _, factor = key.partition(".lora_")
    if layer in _OUTSIDE_BLOCKS:
        return f"diffusion_model.{_OUTSIDE_BLOCKS[layer]}.lora_{factor}"
    block, number, inner = layer.split(".", 2)
    return f"diffusion_model.{block}.{number}.{_COMFYUI_NAMES.get(inner, inner)}.lora_{factor}"
