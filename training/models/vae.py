"""The VAE of a latent diffusion model: the size of its latents and the decoding of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class VaeDecoder:
    """Decodes latents to images in 0..1.

    Args:
        vae: diffusers' autoencoder. It is frozen.
    """

    def __init__(self, vae: Any) -> None:
        if bool(getattr(vae.config, "force_upcast", False)) and vae.dtype == torch.float16:
            vae.to(dtype=torch.float32)  # SDXL's VAE overflows in fp16
        self.vae = vae.eval().requires_grad_(False)

    def __call__(self, latents: Tensor) -> Tensor:
        """Images float32[B, 3, H, W] of latents float[B, C, h, w], with a gradient where the latents have one."""
        image = self.vae.decode(self._unscaled(latents).to(self.vae.dtype), return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Undo the scaling with which the denoiser was trained."""
        config = self.vae.config
        latents = latents / (getattr(config, "scaling_factor", None) or 1)
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            by_channel = (1, -1, *[1] * (latents.ndim - 2))
            std = torch.tensor(config.latents_std, device=latents.device).view(by_channel)
            mean = torch.tensor(config.latents_mean, device=latents.device).view(by_channel)
            latents = latents * std + mean
        return latents + (getattr(config, "shift_factor", None) or 0)


class FrameDecoder(VaeDecoder):
    """Decodes single frames or videos with the VAE of a video model."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Images float32[B, 3, H, W] of latents float[B, C, h, w], or videos float32[B, N, 3, H, W] of [B, C, F, h, w].

        N is 4 (F - 1) + 1 for Wan. There is a gradient where the latents have one.
        """
        frames = self._unscaled(latents).to(self.vae.dtype)
        if latents.ndim == 4:
            frames = frames[:, :, None]  # [B, C, h, w] -> [B, C, 1, h, w]
        pixels = self.vae.decode(frames, return_dict=False)[0]  # [B, 3, N, H, W]
        pixels = pixels[:, :, 0] if latents.ndim == 4 else pixels.transpose(1, 2)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


def image_side(resolution: int, own: int, multiple: int, name: str) -> int:
    """The side of the training images, pixels.

    Args:
        resolution: asked for; 0 takes the base's own.
        own: the side that the base was made for.
        multiple: what the VAE and the denoiser divide a side by.
        name: of the base, for the message.

    Raises:
        ValueError: the side is not a multiple.
    """
    side = resolution or own
    if side % multiple:
        raise ValueError(f"base.resolution {side}: it must be a multiple of {multiple} for {name}")
    return side
