"""FLUX.2-klein: Flux's second transformer on latents of 2 x 2 patches, with Qwen3's text features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from ..flow import TIMESTEPS
from .diffusers_model import Base
from .flow_base import transformer_base
from .protocol import Conditioning
from .text_encoders import visiting
from .vae import image_side

_DEFAULT_SIDE = 1024


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a Flux2KleinPipeline apart; see `bases.base_from_pipeline`."""
    patch = 2 * pipeline.vae_scale_factor
    side = image_side(resolution, _DEFAULT_SIDE, patch, name)

    def encode(prompts: Sequence[str]) -> Conditioning:
        def run() -> tuple[Tensor, ...]:
            words = pipeline.encode_prompt(list(prompts), device)[0]
            return words, pipeline.encode_prompt([""] * len(prompts), device)[0]

        prompt, empty = visiting((pipeline.text_encoder,), device, run)
        features = prompt.float().mean(dim=1)
        return Conditioning({"encoder_hidden_states": prompt}, {"encoder_hidden_states": empty}, features)

    return transformer_base(
        pipeline,
        name,
        side,
        device,
        architecture="flux2",
        channels=pipeline.transformer.config.in_channels,
        patch=1,
        encode=encode,
        call=_call,
        even=True,
        shift=lambda _config, tokens, steps: compute_empirical_mu(tokens, steps),
        pixels=patch,
        decode=PatchDecoder(pipeline.vae.to(device)),
    )


class PatchDecoder:
    """Decodes normalised 2 x 2 patches of latents, float[B, 4 C, h, w], to images in 0..1.

    Args:
        vae: AutoencoderKLFlux2, whose batch norm holds the patches' mean and variance. It is frozen.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def __call__(self, latents: Tensor) -> Tensor:
        """Images float32[B, 3, H, W], with a gradient where the latents have one."""
        norm = self.vae.bn
        std = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        patches = latents * std.view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
        image = self.vae.decode(torch.pixel_shuffle(patches, 2).to(self.vae.dtype), return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)


def _call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    rows, _, height, width = latents.shape
    words = conditioning["encoder_hidden_states"]
    output = network(
        hidden_states=latents.flatten(2).transpose(1, 2),  # [B, C, H, W] -> [B, H W, C]
        timestep=(timesteps / TIMESTEPS).to(latents.dtype),
        guidance=None,
        txt_ids=_places(rows, (1, 1, words.shape[1]), latents.device),
        img_ids=_places(rows, (height, width, 1), latents.device),
        return_dict=False,
        **conditioning,
    )[0]
    return output.transpose(1, 2).reshape(latents.shape)


def _places(rows: int, sizes: tuple[int, int, int], device: torch.device) -> Tensor:
    """Coordinates (time 0, row, column, position in the text) of every token, int64[rows, tokens, 4]."""
    axes = [torch.arange(size, device=device) for size in (1, *sizes)]
    return torch.cartesian_prod(*axes).expand(rows, -1, -1)
