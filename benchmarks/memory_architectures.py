"""Bases of true size and random numbers, as their published configurations describe them: what `memory_model` counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel, ZImageTransformer2DModel
from diffusion_blend.training.models.unet import call_unet
from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """A base of true size.

    Attributes:
        network: makes the denoiser.
        latent: channels, height and width at 1024 pixels.
        conditioning: name -> shape of a row; integer rows are masks.
        encoders: numbers of the largest text encoder, which is alone on the GPU while it encodes.
        flow: whether it is a flow-matching base.
        call: how the trainer calls the denoiser.
    """

    network: Callable[[], Any]
    latent: tuple[int, int, int]
    conditioning: Mapping[str, tuple[int, ...]]
    encoders: float
    flow: bool
    call: Any


def _call_sd3(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return network(hidden_states=latents, timestep=timesteps, return_dict=False, **conditioning)[0]


def _call_z_image(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    """As the trainer's, but every text has its full length, because the length of a masked one is a number."""
    texts = list(conditioning["encoder_hidden_states"].unbind())
    output = network(list(latents[:, :, None].unbind()), timesteps.to(latents.dtype), texts, return_dict=False)[0]
    return -torch.stack(list(output))[:, :, 0]


def _sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=2048,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def _sd35m() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )


ARCHITECTURES = {
    "sdxl": Architecture(
        _sdxl,
        (4, 128, 128),
        {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
        0.69e9,
        False,
        call_unet,
    ),
    "sd35m": Architecture(
        _sd35m,
        (16, 128, 128),
        {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
        4.76e9,
        True,
        _call_sd3,
    ),
    "z-image": Architecture(
        ZImageTransformer2DModel, (16, 128, 128), {"encoder_hidden_states": (128, 2560)}, 4.02e9, True, _call_z_image
    ),
}


def vae_of(channels: int) -> AutoencoderKL:
    """The VAE of these bases, with this many latent channels."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        layers_per_block=2,
    )
