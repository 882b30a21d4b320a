"""The Pareto figure: each image drawn at the place that two rewards give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ..engine.score_table import pareto_front
from .canvas import empty_figure, rendered
from .drawing import ACCENT, INK, LINE, MUTED, PAPER, fitted, spaced, write

WIDTH, HEIGHT = 1280, 960
SMALLEST, LARGEST = 72, 168
_LEFT, _RIGHT, _TOP, _BOTTOM = 120, 36, 76, 96
FADED = 0.45
"""The share of the paper's colour in an image that another one beats in both rewards."""


@dataclass(frozen=True)
class Point:
    """An image in the figure.

    Args:
        image: its picture.
        label: its name.
        across: its first reward.
        up: its second reward.
    """

    image: Image.Image
    label: str
    across: float
    up: float


def thumbnail_size(places: Sequence[tuple[float, float]]) -> float:
    """The longer side of the images, pixels: as large as possible with most neighbours apart.

    Args:
        places: of the images, pixels.
    """
    roomy = 0.5 * math.sqrt((WIDTH - _LEFT - _RIGHT) * (HEIGHT - _TOP - _BOTTOM) / len(places))
    nearest = sorted(
        min((math.dist(place, other) for j, other in enumerate(places) if j != i), default=LARGEST)
        for i, place in enumerate(places)
    )
    return min(LARGEST, max(SMALLEST, min(roomy, 1.1 * nearest[len(nearest) // 2])))


def limits(values: Sequence[float], pixels: float) -> tuple[float, float]:
    """The ends of an axis, so that the largest images lie whole inside the frame.

    Args:
        values: of the points.
        pixels: length of the axis.
    """
    low, high = min(values), max(values)
    span = high - low or 1.0
    inset = LARGEST / 2 + 24
    margin = span * inset / (pixels - 2 * inset)
    middle = (low + high) / 2
    return (low - margin, high + margin) if high > low else (middle - span / 2 - margin, middle + span / 2 + margin)


def pareto_figure(points: Sequence[Point], across: str, up: str, footer: str = "") -> Image.Image:
    """Draw the figure.

    Args:
        points: one per preference; larger rewards are better.
        across: name of the first reward.
        up: name of the second reward.
        footer: an explanation of the labels; empty for none.
    """
    front = pareto_front([point.across for point in points], [point.up for point in points])
    figure = empty_figure(WIDTH, HEIGHT)
    axes = _draw_axes(figure, points, (across, up), footer)
    _draw_front(axes, [points[i] for i in front])
    image = rendered(figure)
    places = [_pixel(axes, point) for point in points]
    size = thumbnail_size(places)
    draw, best = ImageDraw.Draw(image), set(front)
    for i in [*(i for i in range(len(points)) if i not in best), *front]:
        _draw_point(image, draw, points[i], places[i], size, i in best)
    return image


def _draw_axes(figure: Any, points: Sequence[Point], names: tuple[str, str], footer: str) -> Any:
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    figure.set_facecolor(PAPER)
    axes = figure.add_axes((_LEFT / WIDTH, _BOTTOM / HEIGHT, width / WIDTH, height / HEIGHT), facecolor=PAPER)
    axes.set_xlim(*limits([point.across for point in points], width))
    axes.set_ylim(*limits([point.up for point in points], height))
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=13, labelcolor=MUTED, color=MUTED)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    axes.set_xlabel(f"{names[0]} (better to the right)", fontsize=16, color=INK)
    axes.set_title(f"{names[1]} (better upwards)", fontsize=16, color=INK, loc="left")
    axes.set_title("orange: the Pareto front, beaten by none in both", fontsize=13, color=ACCENT, loc="right")
    if footer:
        figure.text(0.5, 0.012, footer, fontsize=12, color=MUTED, ha="center")
    return axes


def _draw_front(axes: Any, front: Sequence[Point]) -> None:
    """Draw stairs: every point below and to the left of them is beaten in both rewards."""
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    x = [left, *(point.across for point in front)]
    y = [front[0].up, *(point.up for point in front)]
    axes.step([*x, x[-1]], [*y, bottom], where="pre", color=ACCENT, linewidth=2.2)


def _pixel(axes: Any, point: Point) -> tuple[float, float]:
    """The pixel of a point, y downwards."""
    x, y = axes.transData.transform((point.across, point.up))
    return float(x), HEIGHT - float(y)


def _draw_point(
    image: Image.Image, draw: ImageDraw.ImageDraw, point: Point, place: tuple[float, float], size: float, best: bool
) -> None:
    small = fitted(point.image, size, size)
    if not best:
        small = Image.blend(small, Image.new("RGB", small.size, PAPER), FADED)
    left, top = round(place[0] - small.width / 2), round(place[1] - small.height / 2)
    edge = 3 if best else 1
    frame = (left - edge, top - edge, left + small.width + edge - 1, top + small.height + edge - 1)
    draw.rectangle(frame, fill=ACCENT if best else MUTED)
    image.paste(small, (left, top))
    # The label is on top of the image, because the next image of a front lies lower and to the right and may cover the rest.
    letters = 0.11 * size
    strip = (left, top, left + small.width, top + round(1.5 * letters))
    image.paste(Image.blend(image.crop(strip), Image.new("RGB", (strip[2] - left, strip[3] - top), PAPER), 0.75), strip)
    middle = (left + small.width / 2, (top + strip[3]) / 2)
    colour = INK if best else MUTED
    write(draw, middle, spaced(point.label), letters, width=0.96 * small.width, fill=colour, anchor="mm")
