"""A VAE without learned weights: latents are the picture's pixels, folded 2 x 2 into channels."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional

from .sizes import SCALING_FACTOR


class _Point:
    """A distribution of one point. A learned encoder returns a Gaussian in its place."""

    def __init__(self, value: Tensor) -> None:
        self.mean = value

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002 (diffusers' signature)
        return self.mean

    def mode(self) -> Tensor:
        return self.mean


class PixelVAE(ModelMixin, ConfigMixin):
    """Pixel-unshuffle by 2, with the calling convention of diffusers' ``AutoencoderKL``.

    ``encode`` turns pictures float[B, 3, H, W] in -1..1 into latents float[B, 12, H/2, W/2]; ``decode`` is its exact
    inverse. The model's latents are these times ``config.scaling_factor``, as with any Stable Diffusion VAE.
    """

    @register_to_config
    def __init__(
        self,
        scaling_factor: float = SCALING_FACTOR,  # noqa: ARG002  (read from config)
        latent_channels: int = 12,  # noqa: ARG002  (read from config)
        # Pipelines compute the downscaling, 2 ** (number of levels - 1), from this list's length.
        block_out_channels: tuple[int, ...] = (3, 12),  # noqa: ARG002  (read from config)
        force_upcast: bool = False,  # noqa: ARG002  (read from config)
    ) -> None:
        super().__init__()
        # A model without any tensor has no dtype or device, and its weights file would be empty.
        self.register_buffer("unit", torch.ones(1))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[_Point]:
        """Fold pixels into channels."""
        point = _Point(functional.pixel_unshuffle(x, 2))
        if not return_dict:
            return (point,)
        return AutoencoderKLOutput(latent_dist=point)  # pyright: ignore[reportArgumentType]

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,  # noqa: ARG002  (diffusers' signature)
    ) -> DecoderOutput | tuple[Tensor]:
        """Unfold channels into pixels."""
        sample = functional.pixel_shuffle(z, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
