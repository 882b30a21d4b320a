"""The Pareto figure: each image drawn at the place that two rewards give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..engine.score_table import pareto_front
from .drawing import ACCENT, INK, LINE, MUTED, PAPER, fitted, spaced, write

WIDTH, HEIGHT = 1280, 960
TEXT = 22
SMALLEST, LARGEST = 72, 168
_SHARPNESS = 2  # drawn at twice the size and reduced: Pillow's lines are not smoothed
_LEFT, _RIGHT, _TOP, _BOTTOM = 120, 36, 76, 96
FADED = 0.45
"""How much of the paper shows through an image that is beaten."""


@dataclass(frozen=True)
class Axis:
    """A straight map of values to pixels.

    Args:
        low: the smallest value.
        high: the largest.
        start: pixel of the smallest.
        end: pixel of the largest.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; the middle where all values are the same."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers (1, 2 or 5 times a power of ten) from the first to the last value, at most ``most``."""
        if self.high == self.low:
            return [self.low]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(s for factor in (1, 2, 5, 10, 20) if (self.high - self.low) / (s := factor * step) <= most - 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Point:
    """An image in the figure.

    Args:
        image: its picture.
        label: its name.
        across: its first reward.
        up: its second.
    """

    image: Image.Image
    label: str
    across: float
    up: float


def thumbnail_size(places: Sequence[tuple[float, float]]) -> float:
    """Pixels of an image's longer side: as large as leaves neighbours mostly apart.

    Args:
        places: of the images, pixels.
    """
    roomy = 0.5 * math.sqrt((WIDTH - _LEFT - _RIGHT) * (HEIGHT - _TOP - _BOTTOM) / len(places))
    nearest = sorted(
        min((math.dist(place, other) for j, other in enumerate(places) if j != i), default=LARGEST)
        for i, place in enumerate(places)
    )
    return min(LARGEST, max(SMALLEST, min(roomy, 1.1 * nearest[len(nearest) // 2])))


def axes(points: Sequence[Point], inset: float) -> tuple[Axis, Axis]:
    """Across to the right and up, the images whole inside the frame.

    Args:
        points: all.
        inset: from the frame to the outermost points, pixels.
    """
    across, up = [point.across for point in points], [point.up for point in points]
    return (
        Axis(min(across), max(across), _LEFT + inset, WIDTH - _RIGHT - inset),
        Axis(min(up), max(up), HEIGHT - _BOTTOM - inset - TEXT, _TOP + inset),
    )


def pareto_figure(points: Sequence[Point], across: str, up: str, footer: str = "") -> Image.Image:
    """Draw the figure.

    Args:
        points: one a preference; larger rewards are better.
        across: the first reward's name.
        up: the second's.
        footer: what the labels mean; empty for nothing.
    """
    x, y = axes(points, LARGEST / 2 + 12)
    size = thumbnail_size([(x(point.across), y(point.up)) for point in points])
    front = pareto_front([point.across for point in points], [point.up for point in points])
    image = Image.new("RGB", (WIDTH * _SHARPNESS, HEIGHT * _SHARPNESS), PAPER)
    draw = ImageDraw.Draw(image)
    _draw_frame(draw, x, y, across, up, footer)
    _draw_front(draw, [(x(points[i].across), y(points[i].up)) for i in front])
    best = set(front)
    for i in [*(i for i in range(len(points)) if i not in best), *front]:
        _draw_point(image, draw, points[i], (x(points[i].across), y(points[i].up)), size, i in best)
    return image.reduce(_SHARPNESS)


def _draw_frame(draw: ImageDraw.ImageDraw, x: Axis, y: Axis, across: str, up: str, footer: str) -> None:
    scale = _SHARPNESS
    left, right, top, bottom = _LEFT * scale, (WIDTH - _RIGHT) * scale, _TOP * scale, (HEIGHT - _BOTTOM) * scale
    small = 0.85 * TEXT * scale
    for value in x.ticks():
        draw.line((x(value) * scale, top, x(value) * scale, bottom), fill=LINE, width=scale)
        write(draw, (x(value) * scale, bottom + 8 * scale), f"{value:g}", small, fill=MUTED)
    for value in y.ticks():
        draw.line((left, y(value) * scale, right, y(value) * scale), fill=LINE, width=scale)
        write(draw, (left - 10 * scale, y(value) * scale), f"{value:g}", small, fill=MUTED, anchor="rm")
    draw.rectangle((left, top, right, bottom), outline=MUTED, width=scale)
    write(draw, ((left + right) / 2, bottom + 38 * scale), f"{across} (better to the right)", TEXT * scale)
    write(draw, (left, top - 40 * scale), f"{up} (better upwards)", TEXT * scale, anchor="la")
    write(
        draw,
        (right, top - 36 * scale),
        "orange: the Pareto front, beaten by none in both",
        small,
        fill=ACCENT,
        anchor="ra",
    )
    if footer:
        write(
            draw, ((left + right) / 2, bottom + 70 * scale), footer, 0.8 * TEXT * scale, width=right - left, fill=MUTED
        )


def _draw_front(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]]) -> None:
    """Stairs: what lies below and to the left of them is beaten."""
    corners = [(float(_LEFT), places[0][1])]
    for (x, y), following in zip(places, [*places[1:], None], strict=True):
        corners.append((x, y))
        corners.append((x, following[1] if following else HEIGHT - _BOTTOM))
    draw.line([(x * _SHARPNESS, y * _SHARPNESS) for x, y in corners], fill=ACCENT, width=3 * _SHARPNESS)


def _draw_point(
    image: Image.Image, draw: ImageDraw.ImageDraw, point: Point, place: tuple[float, float], size: float, best: bool
) -> None:
    scale = _SHARPNESS
    small = fitted(point.image, size * scale, size * scale)
    if not best:
        small = Image.blend(small, Image.new("RGB", small.size, PAPER), FADED)
    left, top = round(place[0] * scale - small.width / 2), round(place[1] * scale - small.height / 2)
    edge = (3 if best else 1) * scale
    frame = (left - edge, top - edge, left + small.width + edge - 1, top + small.height + edge - 1)
    draw.rectangle(frame, fill=ACCENT if best else MUTED)
    image.paste(small, (left, top))
    # On top of the image: along a front the next one lies lower and to the right, and may cover the rest.
    letters = 0.11 * size * scale
    strip = (left, top, left + small.width, top + round(1.5 * letters))
    image.paste(Image.blend(image.crop(strip), Image.new("RGB", (strip[2] - left, strip[3] - top), PAPER), 0.75), strip)
    middle = (left + small.width / 2, (top + strip[3]) / 2)
    write(
        draw, middle, spaced(point.label), letters, width=0.96 * small.width, fill=INK if best else MUTED, anchor="mm"
    )
