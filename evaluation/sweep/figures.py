"""Pareto figures and the grid of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...blending.plans import Gates
from ..gaussian.distance import interval
from .config import UNSCALED
from .statistics import Array, Result, of_group, within_pictures

LABELS = {
    "stochastic-independent": "stochastic, independent draws",
    "early": "early blend, then soup",
    "factor-soup": "soup of factors (as in the paper's code)",
    "msdda": "MSDDA",
    "morl": "MORL (trained for w)",
    "code": "CoDe",
    "rgg": "RGG",
}
_MARKERS = "osD^vP*X<>"


def label(method: str) -> str:
    """What tables and figures call a method."""
    return LABELS.get(method, method)


def write_weights(weights: Gates) -> str:
    """A preference as text, ``0.5/0.25/0.25``."""
    return "/".join(f"{round(weight, 3):g}" for weight in weights)


def pareto_figure(results: Sequence[Result], adapters: Sequence[str], pairs: Sequence[tuple[str, str]]) -> bytes:
    """A panel per pair of rewards: every method's mean rewards over the preferences, with 95 % intervals within pictures.

    Args:
        results: of the whole sweep; each KL scale is a line of its own.
        adapters: names, in the order of the weights.
        pairs: the rewards on the axes.

    Returns:
        A PNG file's content.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(5.6 * columns, 4.6 * rows + 1), layout="constrained")
    panels = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).flat)
    for panel, pair in zip(panels, pairs, strict=False):
        _front(panel, of_group(results, adapters, pair), adapters, pair)
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize="small")
    return png(figure)


def _front(panel: Any, results: Sequence[Result], adapters: Sequence[str], pair: tuple[str, str]) -> None:
    series = list(dict.fromkeys((result.method, result.kl_scale) for result in results))
    several = len({kl_scale for _, kl_scale in series}) > 1
    first = adapters.index(pair[0]) if pair[0] in adapters else 0
    spread = [dict(enumerate(within_pictures(results, name))) for name in pair] if results else [{}, {}]
    for number, (method, kl_scale) in enumerate(series):
        own = [i for i, result in enumerate(results) if (result.method, result.kl_scale) == (method, kl_scale)]
        own = own[:1] if method == "base" else sorted(own, key=lambda i: results[i].weights[first])
        x, y = ([values[i] for i in own] for values in spread)
        name = f"{label(method)}, KL scale {kl_scale:g}" if several and method != "base" else label(method)
        panel.errorbar(
            [mean for mean, _ in x],
            [mean for mean, _ in y],
            xerr=[half for _, half in x],
            yerr=[half for _, half in y],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.2,
            elinewidth=0.6,
            alpha=0.85,
            label=name,
        )
    panel.set(xlabel=pair[0], ylabel=pair[1])
    panel.grid(alpha=0.25)


def scale_figure(results: Sequence[Result]) -> bytes:
    """Weighted reward and KL to the base over the KL scale, a line per method and preference. Returns a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    scaled = [result for result in results if result.method not in UNSCALED]
    for method, weights in dict.fromkeys((result.method, result.weights) for result in scaled):
        own = [result for result in scaled if (result.method, result.weights) == (method, weights)]
        for panel, columns in zip(panels, ([r.weighted for r in own], [r.columns["kl"] for r in own]), strict=True):
            _line(panel, [r.kl_scale for r in own], columns, f"{label(method)}, {write_weights(weights)}")
    panels[0].set(xlabel="KL scale", ylabel="r(w)")
    panels[1].set(xlabel="KL scale", ylabel="KL to the base [nats]")
    panels[1].legend(fontsize="x-small")
    return png(figure)


def _line(panel: Any, x: Sequence[float], columns: Sequence[Array | None], name: str) -> None:
    known = [(place, interval(column.tolist())) for place, column in zip(x, columns, strict=True) if column is not None]
    places, spread = [place for place, _ in known], [values for _, values in known]
    panel.errorbar(places, [m for m, _ in spread], yerr=[half for _, half in spread], marker=".", label=name)


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def picture_grid(cells: Mapping[tuple[str, str], Sequence[Path]], side: int = 128) -> bytes:
    """Rows of methods, columns of preferences; each cell shows the same prompts and noise, tiled.

    Args:
        cells: (row, column) -> picture files.
        side: of one picture, screen pixels.

    Returns:
        A PNG file's content.
    """
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    tiles = {key: tile(files, side) for key, files in cells.items()}
    tallest = max(image.height / image.width for image in tiles.values())
    figure = Figure(figsize=(1.9 * len(columns) + 1.6, 1.9 * tallest * len(rows) + 0.5), layout="constrained")
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
