"""The simplex of three preferences as a triangle of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...blending.plans import Gates
from ..sweep.figures import png, tile

HEIGHT = math.sqrt(3) / 2
CORNERS = ((0.5, HEIGHT), (0.0, 0.0), (1.0, 0.0))
"""Where all weight on the first, second and third adapter lies: top, left, right; y up, side 1."""


def place(weights: Gates) -> tuple[float, float]:
    """Barycentric coordinates to the plane: ``sum_i w_i corner_i``."""
    x = math.fsum(w * corner[0] for w, corner in zip(weights, CORNERS, strict=True))
    return x, math.fsum(w * corner[1] for w, corner in zip(weights, CORNERS, strict=True))


def triangle_figure(pictures: Mapping[Gates, Sequence[Path]], names: Sequence[str]) -> bytes:
    """Pictures at their preferences' places in the triangle.

    Args:
        pictures: preference, float[3] -> picture files, tiled.
        names: of the three adapters, at the corners.

    Returns:
        A PNG file's content.
    """
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    divisions = round(math.sqrt(2 * len(pictures) + 0.25) - 1.5)  # of n (n + 1) / 2 lattice points
    size = 3.0 + 1.5 * max(divisions, 1)
    figure = Figure(figsize=(size, size * 0.95), layout="constrained")
    panel = figure.subplots()
    outline = [*CORNERS, CORNERS[0]]
    panel.plot([x for x, _ in outline], [y for _, y in outline], color="0.75", linewidth=1, zorder=0)
    for weights, files in pictures.items():
        sheet = tile(files, 64)
        image = OffsetImage(np.asarray(sheet), zoom=84 / max(sheet.size), interpolation="nearest")
        panel.add_artist(AnnotationBbox(image, place(weights), pad=0.1, bboxprops={"edgecolor": "0.75"}))
    reach = 0.5 / max(divisions, 1)
    for name, (x, y), low in zip(names, CORNERS, (False, True, True), strict=True):
        panel.text(x, y - reach * 0.9 if low else y + reach * 0.9, name, ha="center", va="center", fontsize=12)
    panel.set(xlim=(-reach, 1 + reach), ylim=(-1.1 * reach, HEIGHT + 1.1 * reach), aspect="equal")
    panel.set_axis_off()
    return png(figure)
