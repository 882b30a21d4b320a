"""Tiny Stable Diffusion pipelines with random weights, saved as diffusers folders; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_tokenizer import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def _text_config(hidden: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=78,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=projection,
        bos_token_id=76,
        eos_token_id=77,
        pad_token_id=77,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=4,
    )


def _unet(cross: int, **extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=cross,
        attention_head_dim=8,
        norm_num_groups=1,
        **extra,
    )


def save_tiny_sd(folder: Path, seed: int = 0, prediction_type: str = "v_prediction") -> Path:
    """Save a StableDiffusionPipeline of about 60,000 parameters: 4 x 4 pixels, latents 4 x 2 x 2."""
    torch.manual_seed(seed)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        # With v prediction an untrained network keeps latents near unit variance, and trailing steps that end at
        # alpha 1 avoid a step of almost no noise. Such a step would have most of the KL and hardly change the image.
        set_alpha_to_one=prediction_type == "v_prediction",
        timestep_spacing="trailing" if prediction_type == "v_prediction" else "leading",
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(32, 32)),
        tokenizer=tiny_tokenizer(folder / "words"),
        unet=_unet(32),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_tiny_sdxl(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Save a StableDiffusionXLPipeline of the same size, with two text encoders and micro-conditioning.

    With v prediction its pictures are near unit variance, as those of `save_tiny_sd`.
    """
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "words")
    unet = _unet(
        48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(32, 32)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(16, 16)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="trailing" if prediction_type == "v_prediction" else "leading",
            prediction_type=prediction_type,
        ),
    ).save_pretrained(folder)
    return folder
