"""Pictures: from tensors to files and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


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


def image_grid(images: Tensor) -> bytes:
    """A PNG with the images side by side in rows, as square as possible.

    Args:
        images: float[B, 3, H, W] in 0..1.

    Returns:
        The file's content.
    """
    count, _, height, width = images.shape
    columns = int(count**0.5 + 0.999)
    grid = Image.new("RGB", (columns * width, -(-count // columns) * height))
    for i, image in enumerate(images):
        grid.paste(to_pil(image), (i % columns * width, i // columns * height))
    content = io.BytesIO()
    grid.save(content, format="PNG")
    return content.getvalue()
