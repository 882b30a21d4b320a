"""The demo's page: one HTML file that contains everything."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from ...artifacts.files import write_atomically
from ...blending.simplex import triangle_point
from ..sweep.figures import label, pareto_figure, write_weights
from ..sweep.records import Row
from ..sweep.run import Sweep
from ..sweep.statistics import Result, collect_results, hypervolumes, means
from .triangle import triangle_figure


def write_page(sweep: Sweep, rows: Sequence[Row], folder: Path) -> Path:
    """Write ``triangle.png``, ``pareto.png`` and ``index.html``, which embeds them and needs no other file.

    Args:
        sweep: finished, of three adapters, with a picture kept for each prompt.
        rows: the rows that it returned.
        folder: where.

    Returns:
        The HTML file.
    """
    names = list(sweep.config.adapters)
    results = collect_results(rows, names, names, sweep.scales)
    pairs = [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]
    pareto = pareto_figure(results, names, pairs)
    blends = {point.weights: point for point in sweep.points if point.method == "blend"}
    shown = range(min(4, sweep.config.save_images, sweep.config.images_per_point))
    pictures = {w: [sweep.records.picture(point.folder, i) for i in shown] for w, point in blends.items()}
    triangle = triangle_figure(pictures, names)
    write_atomically(folder / "pareto.png", pareto)
    write_atomically(folder / "triangle.png", triangle)
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    volumes = hypervolumes(results, names, names, sweep.config.resamples, sweep.config.seed)
    text = template.substitute(
        names=html.escape(", ".join(names)),
        pictures=sweep.config.images_per_point,
        prompts=len(sweep.prompts),
        steps=sweep.config.steps,
        seed=sweep.config.seed,
        pareto=_data(pareto),
        triangle=_data(triangle),
        volumes=_table(volumes, ["method", "hypervolume", "low", "high", "- blend", "- blend, low", "- blend, high"]),
        means=_table(means(results, names), ["method", "weights", *names, "r(w)", "s/picture", "calls/picture"]),
        # "</" would end the script element anywhere, also inside a string.
        world=json.dumps(_world(sweep, results), separators=(",", ":")).replace("</", "<\\/"),
    )
    write_atomically(folder / "index.html", text.encode())
    return folder / "index.html"


def _world(sweep: Sweep, results: Sequence[Result]) -> dict[str, Any]:
    """What the page's script draws: pictures and mean rewards of every method at every preference."""
    names, prompts = list(sweep.config.adapters), sweep.prompts.prompts
    preferences = list(dict.fromkeys(result.weights for result in results))
    found = {(result.method, result.weights): result for result in results}
    folders = {(point.method, point.weights): point.folder for point in sweep.points}
    kept = range(min(len(prompts), sweep.config.save_images, sweep.config.images_per_point))
    store: dict[str, int] = {}  # each picture once, though points share them
    methods: dict[str, Any] = {}
    for method in dict.fromkeys(result.method for result in results):
        cells = []
        for weights in preferences:
            folder = folders.get((method, weights), folders.get((method, ())))
            assert folder is not None
            files = [sweep.records.picture(folder, image) for image in kept]
            means_here = [float(found[method, weights].columns[name].mean()) for name in names]
            pictures = [store.setdefault(_data(file.read_bytes()), len(store)) for file in files]
            calls = round(float(found[method, weights].columns["calls"].mean()) / sweep.config.steps, 2)
            cells.append({"means": means_here, "pictures": pictures, "calls": calls})
        methods[method] = {"label": label(method), "cells": cells}
    places = [(round(x, 4), round(y, 4)) for x, y in map(triangle_point, preferences)]
    return {
        "names": names,
        "prompts": [prompts[image % len(prompts)] for image in kept],
        "weights": [[round(w, 4) for w in weights] for weights in preferences],
        "places": places,
        "methods": methods,
        "store": list(store),
    }


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(name, row[name])}</td>" for name in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(name: str, value: Any) -> str:
    if name == "method":
        return html.escape(label(value))
    if name == "weights":
        return write_weights(value)
    if isinstance(value, tuple):
        return f"{value[0]:.3f} <small>&plusmn; {value[1]:.3f}</small>"
    return f"{value:.3f}"
