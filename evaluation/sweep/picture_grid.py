"""The grid of a sweep's kept pictures: rows of methods, columns of preferences, the prompts below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .figures import chosen_evenly, label, png, write_weights

if TYPE_CHECKING:
    from .run import Sweep

MOST_COLUMNS = 9
"""Preferences in the grid; of more, as many are chosen evenly."""
MOST_ROWS = 24
IN_A_CELL = 4
"""Pictures in a cell."""

Cells = dict[tuple[str, str], list[Path]]
"""(row, column) -> picture files."""


def write_cells(sweep: Sweep) -> tuple[Cells, list[str]]:
    """The cells of the grid and the prompts of a cell's pictures; no cells where no pictures were kept.

    The base has no preference, so it fills one cell of the first column.
    """
    points = sweep.union()
    several = len({point.kl_scale for point in points if point.weights}) > 1
    variants = {method: {p.settings for p in points if p.method == method} for method in {p.method for p in points}}
    weights = list(dict.fromkeys(point.weights for point in points if point.weights)) or [()]
    weights = [weights[number] for number in chosen_evenly(len(weights), MOST_COLUMNS)]
    images = range(min(sweep.config.save_images, sweep.config.images_per_point, IN_A_CELL))
    cells: Cells = {}
    for point in points if images else ():
        files = [sweep.records.picture(point.folder, image) for image in images]
        preference = point.weights or weights[0]
        if preference not in weights or not all(file.exists() for file in files):
            continue
        name = label(point.method, point.settings if len(variants[point.method]) > 1 else "")
        row = f"{name}\nKL scale {point.kl_scale:g}" if several and point.weights else name
        cells[row, write_weights(preference)] = files
    rows = list(dict.fromkeys(row for row, _ in cells))[:MOST_ROWS]
    prompts = sweep.prompts.prompts
    shown = list(dict.fromkeys(prompts[image % len(prompts)] for image in images))
    return {key: files for key, files in cells.items() if key[0] in rows}, shown


def picture_grid(
    cells: Mapping[tuple[str, str], Sequence[Path]], prompts: Sequence[str] = (), side: int = 128
) -> bytes:
    """Rows of methods, columns of preferences; each cell shows the same prompts and noise, tiled.

    Args:
        cells: (row, column) -> picture files.
        prompts: of the pictures in a cell, written below the grid.
        side: of one picture, screen pixels.

    Returns:
        A PNG file's content.
    """
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    tiles = {key: tile(files, side) for key, files in cells.items()}
    tallest = max(image.height / image.width for image in tiles.values())
    width = 1.9 * len(columns) + 1.6
    text = "\n".join(
        textwrap.shorten(f"{number}. {prompt}", int(16 * width)) for number, prompt in enumerate(prompts, start=1)
    )
    figure = Figure(figsize=(width, 1.9 * tallest * len(rows) + 0.5 + 0.2 * len(prompts)), layout="constrained")
    panels = np.asarray(figure.subplots(len(rows), len(columns), squeeze=False))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            panel = panels[i, j]
            panel.set(xticks=[], yticks=[])
            for side_line in panel.spines.values():
                side_line.set_visible(False)
            if (row, column) in tiles:
                panel.imshow(np.asarray(tiles[row, column]))
            if i == 0:
                panel.set_title(column, fontsize=8)
            if j == 0:
                panel.set_ylabel(row.replace(" (", "\n("), fontsize=8, rotation=0, ha="right", va="center")
    if text:
        figure.supxlabel(text, fontsize=7, x=0.02, ha="left")
    return png(figure)


def tile(files: Sequence[Path], side: int) -> Image.Image:
    """Pictures side by side, as square as possible, enlarged without blur."""
    columns = int(np.ceil(np.sqrt(len(files))))
    sheet = Image.new("RGB", (columns * side, -(-len(files) // columns) * side), "white")
    for i, file in enumerate(files):
        with Image.open(file) as picture:
            method = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((side, side), method), (i % columns * side, i // columns * side))
    return sheet
