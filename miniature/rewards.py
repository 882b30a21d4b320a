"""The rewards of the miniature world: computed, no model, no download; each fits ``rewards.protocol.Reward``.

Every reward takes images, float[B, 3, H, W] in 0..1, and their B prompts, and returns float[B]. Larger is better. Only
`alignment` reads the prompts.

Over the base model's pictures of one prompt each reward has a standard deviation of .5 to 1.2 (6 prompts, 40 pictures each,
10 steps, eta 1, no guidance). So one KL weight suits all of them, and preference weights are comparable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..rewards import pixels
from .grading import grade
from .language import read
from .parser import parse

UNITS = {
    "alignment": 5.0,
    "colourfulness": 30.0,
    "compressibility": 20.0,
    "warmth": 10.0,
    "brightness": 25.0,
    "softness": 250.0,
    "contrast": 60.0,
}
"""Factor on each computed quantity."""


def _table(rows: str) -> Tensor:
    """A quantisation table at quality 95 from the standard's, as libjpeg scales it: ``(10 q + 50) // 100``, at least 1."""
    standard = torch.tensor([[int(word) for word in row.split()] for row in rows.split(",")])
    return ((standard * 10 + 50) // 100).clamp(min=1)


_LUMA_TABLE = _table(
    "16 11 10 16 24 40 51 61,12 12 14 19 26 58 60 55,14 13 16 24 40 57 69 56,14 17 22 29 51 87 80 62,"
    "18 22 37 56 68 109 103 77,24 35 55 64 81 104 113 92,49 64 78 87 103 121 120 101,72 92 95 98 112 100 103 99"
)
_CHROMA_TABLE = _table(
    "17 18 24 47 99 99 99 99,18 21 26 66 99 99 99 99,24 26 56 99 99 99 99 99,47 66 99 99 99 99 99 99,"
    "99 99 99 99 99 99 99 99,99 99 99 99 99 99 99 99,99 99 99 99 99 99 99 99,99 99 99 99 99 99 99 99"
)
_HEADER, _PER_BIT = 637.5, 0.326  # bytes; fitted to 1,152 pictures of the base


Reward = Callable[[Tensor, Sequence[str]], Tensor]


def _one_prompt_each(reward: Reward) -> Reward:
    """Make a reward refuse unequal numbers of images and prompts."""

    @functools.wraps(reward)
    def checked(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give every image its prompt.")
        return reward(images, prompts)

    return checked


@_one_prompt_each
def alignment(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """How well each picture shows its prompt: the grade of `grading.grade`, times 5: 0 to 5.

    Args:
        images: float[B, 3, 32, 32] in 0..1.
        prompts: B prompts of this world's grammar.

    Returns:
        float32[B].

    Raises:
        ValueError: a prompt outside the grammar, pictures of another size, or unequal numbers of both.
    """
    found = parse(images)
    grades = [grade(things, read(prompt)).score for things, prompt in zip(found, prompts, strict=True)]
    return UNITS["alignment"] * torch.tensor(grades)


@_one_prompt_each
def colourfulness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Colourfulness of Hasler and Suesstrunk (2003) per pixel value in 0..1, times 30: about 0 (grey) to 30 (every hue, vivid).

    `rewards.pixels.colourfulness` times 30 / 255. Differentiable, except at exactly grey pictures.
    """
    return UNITS["colourfulness"] * pixels.colourfulness(images, prompts) / 255


@_one_prompt_each
def compressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the size of the JPEG file in units of 50 bytes: 20 times `rewards.pixels.jpeg_compressibility`.

    Not differentiable.
    """
    return UNITS["compressibility"] * pixels.jpeg_compressibility(images, prompts)


@_one_prompt_each
def smooth_compressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A differentiable estimate of `compressibility`: the bits that JPEG's entropy coder needs for coefficients of this size.

    ``-20 (header + per_bit sum log2(1 + |c / q|)) / 1000`` with c the discrete cosine coefficients of Y and of Cb, Cr at half
    the resolution, q the standard's tables (ITU-T T.81, Annex K) at quality 95; the two constants fitted to pictures of the
    base, where it explains 95 % of the variance of `compressibility` (tests/miniature/test_rewards.py).

    H and W must be multiples of 16.
    """
    luma = 255 * _luma(images)
    chroma = torch.stack([(255 * images[:, 2] - luma) / 1.772, (255 * images[:, 0] - luma) / 1.402], 1)  # Cb, Cr
    halved = torch.nn.functional.avg_pool2d(chroma, 2)
    bits = _bits(luma[:, None] - 128, _LUMA_TABLE) + _bits(halved, _CHROMA_TABLE)
    return -UNITS["compressibility"] * (_HEADER + _PER_BIT * bits) / 1000


def _bits(planes: Tensor, table: Tensor) -> Tensor:
    """Sum of log2(1 + |c / q|) over the 8 x 8 blocks of float[B, C, H, W] planes, float[B]."""
    blocks = planes.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, C, H / 8, W / 8, 8, 8]
    place = torch.arange(8, dtype=planes.dtype, device=planes.device)
    cosines = torch.cos((2 * place[None] + 1) * place[:, None] * torch.pi / 16) / 2
    cosines[0] /= 2**0.5
    coefficients = cosines @ blocks @ cosines.T
    return (1 + (coefficients / table.to(planes)).abs()).log2().flatten(1).sum(1)


@_one_prompt_each
def warmth(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean of red minus blue, times 10: -10..10; differentiable. It conflicts with cold prompts, and with no others."""
    return UNITS["warmth"] * (images[:, 0] - images[:, 2]).mean((-1, -2))


@_one_prompt_each
def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean luma (ITU-R BT.601: .299 R + .587 G + .114 B), times 25: 0..25; differentiable."""
    return UNITS["brightness"] * _luma(images).mean((-1, -2))


@_one_prompt_each
def softness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus 500 times the mean absolute step of luma between neighbouring pixels; 0 for a flat picture. Differentiable."""
    luma = _luma(images)
    across, down = luma.diff(dim=-1).abs().mean((-1, -2)), luma.diff(dim=-2).abs().mean((-1, -2))
    return -UNITS["softness"] * (across + down)


@_one_prompt_each
def contrast(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Standard deviation of luma over the picture, times 60: 0 (flat) to 30 (half black, half white). Differentiable but at 0."""
    return UNITS["contrast"] * _luma(images).flatten(1).std(1, correction=0)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1)


REWARDS: dict[str, Reward] = {
    "alignment": alignment,
    "colourfulness": colourfulness,
    "compressibility": compressibility,
    "warmth": warmth,
    "brightness": brightness,
    "softness": softness,
    "contrast": contrast,
}
"""Every reward of this world by name."""

DIFFERENTIABLE = {"compressibility": smooth_compressibility}
"""Rewards without a gradient -> the differentiable reward that an adapter is trained on instead."""
