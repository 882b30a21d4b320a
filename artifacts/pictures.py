"""Pictures: from tensors to files and back."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

_LINE = 14
"""Height of a caption's line, pixels."""
_LETTER = 7
"""Width of a caption's widest usual letter, pixels."""
_FONT = ImageFont.load_default


def to_pil(image: Tensor) -> Image.Image:
    """One image float[3, H, W] in 0..1 as an 8-bit RGB picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def read_picture(path: Path) -> Tensor:
    """A picture file as float32[3, H, W] in 0..1.

    Raises:
        ValueError: the file is not a picture that Pillow can read.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable picture ({error})") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def film_strips(videos: Tensor, most: int = 5) -> Tensor:
    """Frames of every video side by side, evenly spaced from the first to the last.

    Args:
        videos: float[B, N, 3, H, W].
        most: frames of a strip.

    Returns:
        float[B, 3, H, min(N, most) W].
    """
    count = videos.shape[1]
    chosen = torch.linspace(0, count - 1, min(count, most)).round().long()
    return torch.cat(videos[:, chosen].unbind(1), dim=3)


def captioned_grid(images: Tensor, captions: Sequence[str], least: int = 160) -> bytes:
    """A PNG with the images in rows, as square as possible, and a caption below each.

    Args:
        images: float[B, 3, H, W] in 0..1.
        captions: one per image; lines are wrapped.
        least: side to which smaller images are enlarged, pixels, so that captions have room.

    Returns:
        The file's content.
    """
    factor = max(1, -(-least // images.shape[3]))
    width, height = images.shape[3] * factor, images.shape[2] * factor
    letters = max(1, width // _LETTER)
    lines = [[part for line in text.splitlines() for part in textwrap.wrap(line, letters)] for text in captions]
    cell = height + _LINE * max(len(part) for part in lines) + _LINE // 2
    columns = int(len(images) ** 0.5 + 0.999)
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * cell), "white")
    draw = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        left, top = i % columns * width, i // columns * cell
        grid.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.multiline_text(
            (left + 2, top + height + 1), "\n".join(lines[i]), fill="black", font=_FONT(_LINE - 3), spacing=3
        )
    content = io.BytesIO()
    grid.save(content, format="PNG")
    return content.getvalue()
