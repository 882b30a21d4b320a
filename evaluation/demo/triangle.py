"""The simplex of three preferences as a triangle of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...blending.plans import Gates
from ...blending.simplex import TRIANGLE_CORNERS, TRIANGLE_HEIGHT, triangle_divisions, triangle_point
from ..sweep.figures import png
from ..sweep.picture_grid import tile


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

    divisions = triangle_divisions(len(pictures)) or 1
    size = 3.0 + 1.5 * divisions
    figure = Figure(figsize=(size, size * 0.95), layout="constrained")
    panel = figure.subplots()
    outline = [*TRIANGLE_CORNERS, TRIANGLE_CORNERS[0]]
    panel.plot([x for x, _ in outline], [y for _, y in outline], color="0.75", linewidth=1, zorder=0)
    for weights, files in pictures.items():
        sheet = tile(files, 64)
        image = OffsetImage(np.asarray(sheet), zoom=84 / max(sheet.size), interpolation="nearest")
        panel.add_artist(AnnotationBbox(image, triangle_point(weights), pad=0.1, bboxprops={"edgecolor": "0.75"}))
    reach = 0.5 / divisions
    for name, (x, y), low in zip(names, TRIANGLE_CORNERS, (False, True, True), strict=True):
        panel.text(x, y - reach * 0.9 if low else y + reach * 0.9, name, ha="center", va="center", fontsize=12)
    panel.set(xlim=(-reach, 1 + reach), ylim=(-1.1 * reach, TRIANGLE_HEIGHT + 1.1 * reach), aspect="equal")
    panel.set_axis_off()
    return png(figure)
