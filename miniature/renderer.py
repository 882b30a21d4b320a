"""The renderer: seeded 32 x 32 pictures of descriptions, with free style (background, tint, grain, softness, size).

The style is not in the prompt, so rewards can change the style and leave the content as the prompt says.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .language import SHAPES, Description
from .sizes import SIZE

HUES = {"red": 0.0, "yellow": 55.0, "green": 120.0, "cyan": 180.0, "blue": 235.0, "purple": 295.0}  # degrees
RADII = {1: (5.0, 8.5), 2: (4.0, 5.6), 3: (3.8, 4.8)}  # pixels, by the number of things
# The farthest corner of any shape of radius 1 (the triangle's) is this far from its centre.
REACH = 1.3
GAP = 1.5  # pixels between two things, so that equal things stay distinct
# A thing lies on a side of the picture, or beyond another thing, by at least this many pixels.
CLEAR_BY = 4.0


@dataclass(frozen=True)
class Shape:
    """One drawn shape: index into SHAPES, centre and radius in pixels (y down), colour as red, green, blue in 0..1."""

    shape: int
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """All a picture is made of.

    ``background`` is red, green, blue in 0..1; ``slope`` the change of brightness across the picture in x and y;
    ``grain`` the standard deviation of the noise on the background; ``softness`` the width of the edges in pixels.
    """

    shapes: tuple[Shape, ...]
    background: tuple[float, float, float]
    slope: tuple[float, float]
    grain: float
    softness: float


def sample_scene(description: Description, generator: np.random.Generator) -> Scene:
    """Draw a scene that shows the description, with a style drawn at random."""
    shapes = tuple(
        Shape(SHAPES.index(thing.shape), x, y, radius, _sample_rgb(thing.colour, generator))
        for thing, (x, y, radius) in zip(description.things, _place(description, generator), strict=True)
    )
    grey = generator.uniform(0.15, 0.85)
    tint = generator.uniform(0.0, 0.18) * np.asarray(colorsys.hsv_to_rgb(generator.uniform(), 1.0, 1.0))
    background = np.clip(grey + tint - tint.mean(), 0.0, 1.0)
    return Scene(
        shapes=shapes,
        background=(float(background[0]), float(background[1]), float(background[2])),
        slope=(float(generator.uniform(-0.12, 0.12)), float(generator.uniform(-0.12, 0.12))),
        grain=float(generator.uniform(0.005, 0.05)) if generator.uniform() < 0.6 else 0.0,
        softness=float(generator.uniform(1.0, 2.5)),
    )


def _sample_rgb(colour: str, generator: np.random.Generator) -> tuple[float, float, float]:
    hue = (HUES[colour] + generator.uniform(-8, 8)) % 360 / 360
    return colorsys.hsv_to_rgb(hue, float(generator.uniform(0.75, 1.0)), float(generator.uniform(0.75, 1.0)))


def _place(description: Description, generator: np.random.Generator) -> list[tuple[float, float, float]]:
    count = len(description.things)
    low, high = RADII[count]
    shrink = 1.0
    while True:
        # Large things may not fit where the words want them: after 30 tries they get smaller.
        for _ in range(30):
            radii = generator.uniform(low, high, size=count) * shrink
            reach = radii * REACH
            centres = generator.uniform((reach + 0.5)[:, None], (SIZE - reach - 0.5)[:, None], size=(count, 2))
            if _apart(centres, reach) and _as_described(centres, description):
                return [(float(x), float(y), float(r)) for (x, y), r in zip(centres, radii, strict=True)]
        shrink *= 0.95


def _apart(centres: np.ndarray, reach: np.ndarray) -> bool:
    return all(
        math.dist(centres[i], centres[j]) >= reach[i] + reach[j] + GAP
        for i in range(len(centres))
        for j in range(i + 1, len(centres))
    )


def _as_described(centres: np.ndarray, description: Description) -> bool:
    if description.place:
        return clearance(description.place, tuple(centres[0]), (SIZE / 2, SIZE / 2)) >= CLEAR_BY
    if description.relation:
        along = clearance(description.relation, tuple(centres[0]), tuple(centres[1]))
        return along >= max(CLEAR_BY, float(np.abs(centres[0] - centres[1]).max()))
    return True


def clearance(words: str, first: tuple[float, float], second: tuple[float, float]) -> float:
    """How far, in pixels, ``first`` lies beyond ``second`` in the direction that the words name; y points down."""
    if words in ("above", "at the top"):
        return second[1] - first[1]
    if words in ("below", "at the bottom"):
        return first[1] - second[1]
    if words in ("left of", "on the left"):
        return second[0] - first[0]
    if words in ("right of", "on the right"):
        return first[0] - second[0]
    raise ValueError(f"{words!r} is neither a relation nor a place: see RELATIONS and PLACES in language.py.")


def render(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """Draw scenes.

    Args:
        scenes: the pictures to draw.
        generator: a CPU generator for the grain.

    Returns:
        Pictures, float32[B, 3, 32, 32] in 0..1.
    """
    axis = torch.arange(SIZE, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    slope = torch.tensor([scene.slope for scene in scenes])[:, :, None, None]
    ramp = slope[:, 0] * (x / SIZE - 0.5) * 2 + slope[:, 1] * (y / SIZE - 0.5) * 2  # [B, H, W]
    grain = torch.tensor([scene.grain for scene in scenes])[:, None, None, None]
    noise = torch.randn((len(scenes), 3, SIZE, SIZE), generator=generator) * grain
    picture = torch.tensor([scene.background for scene in scenes])[:, :, None, None] + ramp[:, None] + noise
    softness = torch.tensor([scene.softness for scene in scenes])[:, None, None]
    for slot in range(max(len(scene.shapes) for scene in scenes)):
        # A scene with fewer shapes draws one of radius 0 outside the picture: nothing.
        nothing = Shape(0, -9.0, -9.0, 0.0, (0.0, 0.0, 0.0))
        shapes = [scene.shapes[slot] if slot < len(scene.shapes) else nothing for scene in scenes]
        distance = _signed_distance(shapes, x, y)
        cover = (0.5 - distance / softness).clamp(0, 1)[:, None]
        rgb = torch.tensor([shape.rgb for shape in shapes], dtype=torch.float32)[:, :, None, None]
        picture = torch.lerp(picture, rgb.expand_as(picture), cover)
    return picture.clamp(0, 1)


def _signed_distance(shapes: list[Shape], x: Tensor, y: Tensor) -> Tensor:
    centre = torch.tensor([(shape.x, shape.y, shape.radius) for shape in shapes], dtype=torch.float32)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    radius = centre[:, 2, None, None]
    circle = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - math.sqrt(math.pi) / 2 * radius  # the circle's area
    # Equilateral, pointing up, circumradius REACH * radius: three half-planes at half that distance.
    sides = torch.maximum(dy, math.sqrt(3) / 2 * dx.abs() - dy / 2)
    triangle = sides - REACH / 2 * radius
    kind = torch.tensor([shape.shape for shape in shapes])[:, None, None]
    return torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))
