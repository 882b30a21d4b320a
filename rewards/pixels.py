"""Rewards that need no model: JPEG size and colourfulness."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from ..artifacts.pictures import to_pil

_JPEG_QUALITY = 95


def jpeg_incompressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:  # noqa: ARG001  (every reward gets them)
    """Size of each image as a JPEG of quality 95, in kB (1000 bytes), as in DDPO (Black et al. 2024, arXiv 2305.13301).

    Args:
        images: float[B, 3, H, W] in 0..1.
        prompts: not looked at.

    Returns:
        float64[B], kB.
    """
    sizes = []
    for image in images:
        file = io.BytesIO()
        to_pil(image).save(file, format="JPEG", quality=_JPEG_QUALITY)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float64)


def jpeg_compressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the size of each image as a JPEG of quality 95, float64[B], kB (DDPO, arXiv 2305.13301, section 5.2)."""
    return -jpeg_incompressibility(images, prompts)


def colourfulness(images: Tensor, prompts: Sequence[str]) -> Tensor:  # noqa: ARG001
    """Colourfulness of natural images.

    ``M = sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2)``, ``rg = R - G``, ``yb = (R + G) / 2 - B``
    (Hasler and Suesstrunk 2003, Human Vision and Electronic Imaging VIII, eq. for M^(3)), on the 0..255 scale:
    0 is grey, 15 slightly, 59 quite, 109 extremely colourful.

    Args:
        images: float[B, 3, H, W] in 0..1; differentiable.
        prompts: not looked at.

    Returns:
        float[B].
    """
    red, green, blue = (images * 255).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1).flatten(2)  # [B, 2, H W]
    spread = _square_root(opponents.var(2, correction=0).sum(1))
    return spread + 0.3 * _square_root(opponents.mean(2).square().sum(1))


def _square_root(values: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0, where the true one is infinite (a picture of one colour, or a grey one)."""
    above = values > 0
    return torch.where(above, torch.where(above, values, 1.0).sqrt(), 0.0)
