"""The protocol of a text-to-image model, and the conditioning that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..policy import PolicySteps, guide

GATES = "stacked_gates"
"""The entry of a conditioning that holds the gates of adapters trained to be stacked, float32[B, m]."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row per image.

    Attributes:
        prompt: the network's keyword tensors for the prompts, float[B, ...] each; and `GATES`, where there are any.
        empty: the same for the negative (empty) prompt.
        features: one vector per prompt for the value function, float32[B, F].
    """

    prompt: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]
    features: Tensor

    def to(self, device: torch.device) -> Conditioning:
        """The same rows on another device."""
        return Conditioning(
            {name: tensor.to(device) for name, tensor in self.prompt.items()},
            {name: tensor.to(device) for name, tensor in self.empty.items()},
            self.features.to(device),
        )


def join(parts: Sequence[Tensor]) -> Tensor:
    """Join [B, L, ...] over the rows; where L differs (tokens of texts, and their masks), zeros fill the shorter parts."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([lengthened(part, longest) for part in parts])


def lengthened(part: Tensor, length: int) -> Tensor:
    """A tensor [B, L, ...] with zeros at the end of its second dimension."""
    return torch.cat([part, part.new_zeros(len(part), length - part.shape[1], *part.shape[2:])], dim=1)


# A VAE's activations outweigh the denoiser's. At most one SD 1.5 image of 512 x 512 is decoded at once.
_LATENT_PIXELS_AT_ONCE = 64 * 64


def rows_at_once(latent_shape: Sequence[int]) -> int:
    """How many latents of a shape (channels first) are decoded in one call."""
    return max(1, _LATENT_PIXELS_AT_ONCE // math.prod(latent_shape[1:]))


class TextToImageModel(Protocol):
    """A latent diffusion model with a trainable part that can be switched off: the base is the model without it."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, height, width of one latent; of a video channels, frames, height, width."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        ...

    def policy_steps(self, steps: int, eta: float, noisy: Iterable[int] | None = None) -> PolicySteps:
        """The sampler's coefficients for this model's noise schedule; ``noisy`` numbers the steps with noise."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts (and the empty prompt beside each), on the CPU."""
        ...

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], *, base: bool) -> Tensor:
        """Network output float32[B, C, H, W] for timesteps int64[B]; ``base`` leaves the trained part out.

        Latents and output of a video are [B, C, F, H, W], here and wherever latents are.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images float32[B, 3, H, W] (videos float32[B, N, 3, H, W]) in 0..1 from clean latents, on the CPU."""
        ...

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """As `decode`, on the network's device and with a gradient."""
        ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        ...

    def export(self, metadata: Mapping[str, str]) -> bytes:
        """The trained part as the bytes of a ``.safetensors`` file."""
        ...


class StackedModel(TextToImageModel, Protocol):
    """A model whose trained part is several adapters, added up with the gates of each image (`GATES`)."""

    def export_member(self, member: int, metadata: Mapping[str, str]) -> bytes:
        """One adapter as the bytes of a ``.safetensors`` file."""
        ...


def predict_guided(
    model: TextToImageModel, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, scale: float, *, base: bool
) -> Tensor:
    """Network output with classifier-free guidance, both branches in one call.

    Args:
        model: the network.
        latents: noisy latents, float[B, C, H, W].
        timesteps: int64[B].
        conditioning: one row per latent.
        scale: guidance scale; at exactly 1 the empty prompt is not evaluated.
        base: leave the trained part out.

    Returns:
        Guided output, float32[B, C, H, W].
    """
    if scale == 1:
        return model.predict(latents, timesteps, conditioning.prompt, base=base)
    both = {name: join([conditioning.empty[name], tensor]) for name, tensor in conditioning.prompt.items()}
    output = model.predict(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both, base=base)
    unconditional, conditional = output.chunk(2)
    return guide(conditional, unconditional, scale)
