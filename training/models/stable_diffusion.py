"""Stable Diffusion 1.x and 2.x: a UNet, one CLIP text encoder and a VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .diffusers_model import Base
from .protocol import Conditioning
from .quantised import placed
from .text_encoders import visiting
from .vae import VaeDecoder, image_side

_ARCHITECTURES = {768: "sd_v1", 1024: "sd_v2"}
"""The width of the text encoder -> the architecture."""


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a StableDiffusionPipeline apart; see `bases.base_from_pipeline`."""
    architecture = _ARCHITECTURES.get(pipeline.unet.config.cross_attention_dim, "sd")
    return unet_base(pipeline, name, resolution, device, architecture, lambda _: Encoder(pipeline, device))


def unet_base(
    pipeline: Any,
    name: str,
    resolution: int,
    device: torch.device,
    architecture: str,
    encoder: Callable[[int], Callable[[Sequence[str]], Conditioning]],
) -> Base:
    """The base of any pipeline with a UNet.

    Args:
        pipeline: diffusers' pipeline.
        name: what the user called it.
        resolution: side of the images, pixels; 0 takes the pipeline's own.
        device: where the UNet and the VAE go.
        architecture: for the adapter's metadata.
        encoder: makes the encoder of prompts for images of a side.

    Raises:
        ValueError: a resolution that the VAE and the UNet cannot halve evenly.
    """
    unet, scale = placed(pipeline.unet, device), pipeline.vae_scale_factor
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    side = image_side(resolution, unet.config.sample_size * scale, scale * halvings, name)
    return Base(
        name=name,
        architecture=architecture,
        unet=unet,
        scheduler=dict(pipeline.scheduler.config),
        latent_shape=(unet.config.in_channels, side // scale, side // scale),
        resolution=(side, side),
        encode=encoder(side),
        decode=VaeDecoder(pipeline.vae.to(device)),
    )


class Encoder:
    """One CLIP text encoder; it visits the device only to encode."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self.pipeline, self.device = pipeline, device

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one conditioning row each, on the CPU."""
        encode = partial(
            self.pipeline.encode_prompt,
            list(prompts),
            self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=None,
        )
        prompt, empty = visiting((self.pipeline.text_encoder,), self.device, encode)
        return Conditioning(
            {"encoder_hidden_states": prompt}, {"encoder_hidden_states": empty}, prompt.float().mean(dim=1)
        )
