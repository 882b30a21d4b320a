"""The parser: reads coloured shapes and their positions from a picture of the miniature world.

It knows nothing of how the picture was made, so it grades generated pictures as it grades rendered ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .language import COLOURS, SHAPES
from .renderer import HUES
from .sizes import SIZE

# Rendered things have chroma (largest minus smallest channel) above .56, backgrounds below .25 with their grain.
MIN_CHROMA = 0.38
FINER = 4  # sub-pixels a side for outlines
MIN_AREA = 8  # pixels: the smallest rendered thing has about 20


@dataclass(frozen=True)
class Found:
    """One thing seen in a picture.

    ``hue`` is in degrees; ``fits`` has, for each of SHAPES, the intersection over union of the thing with that shape
    drawn into its bounding box; ``x``, ``y`` are the bounding box's centre in pixels, y down.
    """

    colour: str
    shape: str
    hue: float
    fits: tuple[float, ...]
    x: float
    y: float
    area: int


def parse(pictures: Tensor) -> list[list[Found]]:
    """Find the things in each picture.

    Args:
        pictures: float[B, 3, 32, 32] in 0..1, any device.

    Returns:
        For each picture its things, largest first.

    Raises:
        ValueError: the pictures are not of this world's size.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"The parser reads pictures of shape [B, 3, {SIZE}, {SIZE}], got {list(pictures.shape)}.")
    rgb = pictures.detach().to("cpu", torch.float32).numpy()
    chroma = rgb.max(1) - rgb.min(1)
    hue = _hue(rgb)
    return [_things(chroma[i], hue[i]) for i in range(len(rgb))]


def hue_distance(one: float | np.ndarray, two: float | np.ndarray) -> np.ndarray:
    """Angle between two hues, in degrees, 0..180."""
    difference = np.abs(np.asarray(one) - np.asarray(two)) % 360
    return np.minimum(difference, 360 - difference)


def _hue(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def _things(chroma: np.ndarray, hue: np.ndarray) -> list[Found]:
    centres = np.asarray([HUES[colour] for colour in COLOURS])
    nearest = hue_distance(hue[None], centres[:, None, None]).argmin(0)
    found: list[Found] = []
    for index, colour in enumerate(COLOURS):
        labels, count = ndimage.label((nearest == index) & (chroma > MIN_CHROMA))  # type: ignore[misc]
        for label in range(1, count + 1):
            mask = labels == label
            if mask.sum() >= MIN_AREA:
                found.append(_describe(mask, chroma, hue, colour))
    return sorted(found, key=lambda thing: -thing.area)


def _describe(mask: np.ndarray, chroma: np.ndarray, hue: np.ndarray, colour: str) -> Found:
    angles = np.radians(hue[mask])
    middle = float(np.degrees(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) % 360)
    # Whole pixels blur a small circle into a square: outline the thing at half its chroma, between the pixels.
    level = 0.55 * float(np.median(chroma[mask]))
    near = ndimage.binary_dilation(mask)
    window = ndimage.find_objects(near.astype(np.int8))[0]
    soft = np.pad(np.where(near[window], chroma[window], 0.0), 1)
    fine: Any = ndimage.zoom(soft, FINER, order=1, grid_mode=True, mode="nearest") > level
    rows, columns = np.nonzero(fine)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    fits = _fits(fine[top:bottom, left:right])
    return Found(
        colour=colour,
        shape=SHAPES[int(np.argmax(fits))],
        hue=middle,
        fits=fits,
        x=float(left + right) / 2 / FINER + window[1].start - 1,
        y=float(top + bottom) / 2 / FINER + window[0].start - 1,
        area=int(mask.sum()),
    )


def _fits(box: np.ndarray) -> tuple[float, ...]:
    height, width = box.shape
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    circle = (2 * u - 1) ** 2 + (2 * v - 1) ** 2 <= 1.0
    square = np.ones_like(circle)
    triangle = np.abs(2 * u - 1) <= v
    return tuple(float((box & ideal).sum() / (box | ideal).sum()) for ideal in (circle, square, triangle))
