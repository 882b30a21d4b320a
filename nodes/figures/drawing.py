"""Colours, text and images for the contact sheet and the Pareto figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, MUTED, LINE = "#fcfcfb", "#1f2328", "#6b7280", "#d8dbdf"
ACCENT = "#d55e00"
# The colours of Okabe and Ito, in the preference pad's order. Colour-blind people can distinguish them.
ADAPTERS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999")
SMALLEST_TEXT = 9
_TINY = 3  # enlarged this often and more, a smoothed picture is a blur and says less than its pixels


def colour(adapter: int) -> str:
    """The colour of an adapter, counted from 0."""
    return ADAPTERS[adapter % len(ADAPTERS)]


def spaced(label: str) -> str:
    """A row of numbers that does not run together: this font's spaces are narrow."""
    return label.replace(" ", "  ")


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(max(SMALLEST_TEXT, round(size)))


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: float,
    *,
    width: float | None = None,
    fill: str = INK,
    anchor: str = "ma",
) -> None:
    """Write one line, smaller and then cut where it would be too wide.

    Args:
        draw: where to.
        place: the anchor's x and y, pixels.
        text: one line.
        size: of the letters, pixels.
        width: the most there is, pixels; None for any.
        fill: colour.
        anchor: Pillow's text anchor: "ma" is centred below the place, "la" begins there, "mm" is centred on it.
    """
    face = font(size)
    while width is not None and size > SMALLEST_TEXT and draw.textlength(text, face) > width:
        size -= 1
        face = font(size)
    if width is not None and draw.textlength(text, face) > width:
        while text and draw.textlength(text + "...", face) > width:
            text = text[:-1]
        text += "..."
    draw.text(place, text, fill=fill, font=face, anchor=anchor)


def picture(image: Tensor) -> Image.Image:
    """One image float[H, W, C] in 0..1 as a picture; grey becomes RGB, transparency is dropped."""
    pixels = image.detach().to("cpu", torch.float32).clamp(0, 1)
    pixels = pixels.expand(-1, -1, 3) if pixels.shape[-1] == 1 else pixels[..., :3]
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def fitted(image: Image.Image, width: float, height: float) -> Image.Image:
    """The whole picture as large as it fits into a box, in its own proportions; a tiny one keeps its pixels' edges."""
    factor = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS if factor < _TINY else Image.Resampling.NEAREST)


def tensor(image: Image.Image) -> Tensor:
    """A picture as the host's IMAGE, float32[1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255)[None]


def legend(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    names: Sequence[str],
    size: float,
    width: float,
    first: int = 0,
) -> None:
    """The adapters' names after squares of their colours, in one line centred below a place.

    Args:
        draw: where to.
        place: x of the middle and y of the top, pixels.
        names: in the adapters' order.
        size: of the letters, pixels.
        width: the most there is, pixels.
        first: which adapter the first name is.
    """
    gap, square = size, 0.8 * size
    extra = len(names) * (square + 0.4 * size) + (len(names) - 1) * gap
    longest = max(size, (width - extra) / len(names))
    lengths = [min(longest, draw.textlength(name, font(size))) for name in names]
    x, y = place[0] - (sum(lengths) + extra) / 2, place[1]
    for adapter, (name, length) in enumerate(zip(names, lengths, strict=True), first):
        draw.rectangle((x, y + 0.1 * size, x + square, y + 0.1 * size + square), fill=colour(adapter))
        x += square + 0.4 * size
        write(draw, (x, y + 0.5 * size), name, size, width=length + 1, anchor="lm")
        x += length + gap


def card(title: str, lines: Sequence[str]) -> Image.Image:
    """A small picture that says something in words.

    Args:
        title: one line.
        lines: more below it.
    """
    image = Image.new("RGB", (720, 150 + 34 * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((16, 16, image.width - 17, image.height - 17), radius=14, outline=LINE, width=2)
    write(draw, (image.width / 2, 46), title, 30, width=640)
    for i, line in enumerate(lines):
        write(draw, (image.width / 2, 104 + 34 * i), line, 20, width=640, fill=MUTED)
    return image
