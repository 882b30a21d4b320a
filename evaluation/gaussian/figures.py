"""Figures of the studies, written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def exact_figure(
    gap: Sequence[Row], weak: Sequence[Row], scale: Sequence[Row], drift: Sequence[Row], path: Path
) -> None:
    """Four panels: distance over alpha, control errors over noise, weak error over steps, distance over the KL scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    _distances(panels[0, 0], [row for row in gap if row["w"] == 0.5])
    panel = panels[0, 1]
    for key, label in (("blend", "blend"), ("jensen", "Jensen gap (eq. 8)"), ("variation", "L_t2 (Lemma 2)")):
        panel.plot([row["sigma"] for row in drift], [row[key] for row in drift], marker=".", label=label)
    panel.set(xscale="log", xlabel="noise level sigma", ylabel="relative error", title="right/centre, alpha 1, w .5")
    panel.legend()
    panel = panels[1, 0]
    for kind in dict.fromkeys(row["draws"] for row in weak):
        rows = [row for row in weak if row["draws"] == kind]
        steps = [row["steps"] for row in rows]
        panel.errorbar(steps, [row["error"] for row in rows], yerr=[row["+-"] for row in rows], marker="o", label=kind)
    first = weak[0]
    steps = sorted({row["steps"] for row in weak})
    panel.plot(steps, [first["error"] * first["steps"] / n for n in steps], "k:", label="order 1")
    panel.set(xscale="log", yscale="log", xlabel="steps", ylabel="weak error", title="stochastic against blend")
    panel.legend()
    panel = panels[1, 1]
    for name, alpha in dict.fromkeys((row["reward"], row["alpha"]) for row in scale):
        rows = [row for row in scale if (row["reward"], row["alpha"]) == (name, alpha)]
        excess = [row["SW blend"] - row["SW exact"] for row in rows]
        panel.plot([row["lambda"] for row in rows], excess, marker=".", label=f"{name}, alpha {alpha:g}")
    panel.set(xlabel="KL scale", ylabel="distance beyond the exact solution's", title="KL scale against the truth")
    panel.legend()
    figure.savefig(path, dpi=110)


def _distances(panel: Any, rows: Sequence[Row]) -> None:
    for pair in dict.fromkeys(row["rewards"] for row in rows):
        here = [row for row in rows if row["rewards"] == pair]
        for key, style in (("SW base", ":"), ("SW blend", "-"), ("SW exact", "--")):
            panel.plot(
                [row["alpha"] for row in here], [row[key] for row in here], style, marker=".", label=f"{pair}: {key}"
            )
    panel.set(
        xscale="log", yscale="log", xlabel="alpha", ylabel="sliced Wasserstein", title="distance to the truth, w .5"
    )
    panel.legend()


def learned_figure(rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """Distance to the truth of every method on learned networks: over alpha for each pair, and over reward counts."""
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys(row["rewards"] for row in rows if not row["rewards"].endswith("rewards")))
    sets = [row for row in rows if row["rewards"].endswith("rewards")]
    figure = Figure(figsize=(15 if sets else 10, 5), layout="constrained")
    panels = figure.subplots(1, len(pairs) + bool(sets), sharey=True)
    for panel, pair in zip(panels, pairs, strict=False):
        here = [row for row in rows if row["rewards"] == pair]
        _methods(panel, [row["alpha"] for row in here], here, methods)
        panel.set(xscale="log", xlabel="alpha", title=pair)
    if sets:
        _methods(panels[-1], [int(row["rewards"].split()[0]) for row in sets], sets, methods)
        panels[-1].set(xlabel="rewards, equal weights", title="alpha 1")
    panels[0].set(yscale="log", ylabel="sliced Wasserstein to the truth")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def stacked_figure(rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """Distance to the truth over the weight of the first reward, one panel for each pair."""
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys(row["rewards"] for row in rows))
    figure = Figure(figsize=(5 * len(pairs), 4.5), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, pair in zip(panels, pairs, strict=True):
        here = [row for row in rows if row["rewards"] == pair]
        _methods(panel, [float(row["w"]) for row in here], here, methods)
        panel.set(xlabel=f"weight of {pair.split('/')[0]}", title=pair)
    panels[0].set(yscale="log", ylabel="sliced Wasserstein to the truth")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _methods(panel: Any, x: Sequence[float], rows: Sequence[Row], methods: Sequence[str]) -> None:
    for method in methods:
        mean = [row[method][0] for row in rows]
        half = [row[method][1] for row in rows]
        panel.errorbar(x, mean, yerr=half, marker=".", capsize=2, label=method)


def corrected_figure(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A panel for each table: the distance to the truth over the first setting that varies. Dashed is the oracle's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 5), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        axis = "eta" if len({row["eta"] for row in rows}) > 1 else "particles"
        others = ("world", "alpha", "dimensions")
        for key in dict.fromkeys(tuple(row[name] for name in others) for row in rows):
            here = [row for row in rows if tuple(row[name] for name in others) == key]
            label = f"{key[0]}, alpha {key[1]:g}, {key[2]} dimensions"
            x = [row[axis] for row in here]
            line = panel.errorbar(
                x, *zip(*(row["distance"] for row in here), strict=True), marker="o", capsize=2, label=label
            )
            panel.plot(x, [row["oracle"][0] for row in here], "--", color=line.lines[0].get_color())
        panel.set(xlabel=axis)
        panel.set_title(title, fontsize=8)
        if axis == "particles":
            panel.set_xscale("log", base=2)
        panel.legend(fontsize=8)
    panels[0].set(yscale="log", ylabel="sliced Wasserstein to the truth; dashed: the model of the mixture")
    figure.savefig(path, dpi=110)
