"""Tiny SD3 and Flux pipelines with random weights and no text encoders; prompts are given as embeddings."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=channels,
        norm_num_groups=1,
        sample_size=8,
        shift_factor=0.0,
    )


def tiny_sd3(seed: int = 0) -> Any:
    """A StableDiffusion3Pipeline of two blocks."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=16,
    )
    parts = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4), **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_sd3`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(count, 5, 16, generator=draw),
        "pooled_prompt_embeds": torch.randn(count, 24, generator=draw),
        "negative_prompt_embeds": torch.randn(count, 5, 16, generator=draw),
        "negative_pooled_prompt_embeds": torch.randn(count, 24, generator=draw),
        "guidance_scale": 3.0,
        "height": 8,
        "width": 8,
    }


def tiny_flux(seed: int = 0) -> Any:
    """A FluxPipeline of one double and one single block."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_flux`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(count, 5, 16, generator=draw),
        "pooled_prompt_embeds": torch.randn(count, 24, generator=draw),
        "height": 8,
        "width": 8,
    }
