"""Pareto figures, and reward and KL over the KL scale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...blending.plans import Gates
from ..intervals import Array
from .methods import METHODS, is_scaled
from .methods import label as method_label
from .statistics import Result, of_group, within_pictures

MOST_METHODS = 8
"""Methods in one panel; more get panels of their own, with blend in each for comparison."""
MOST_PREFERENCES = 6
"""Preferences with a line or a mark of their own; of more, as many are chosen evenly."""
_MARKERS = "osD^vP*X"
_STYLES = ("-", "--", "-.", ":")


def label(method: str, settings: str = "") -> str:
    """The name of a method in tables and figures, with its own settings where a sweep has several."""
    name = method_label(method) if method in METHODS else method
    return f"{name} ({settings})" if settings else name


def write_weights(weights: Gates) -> str:
    """A preference as text, ``0.5/0.25/0.25``."""
    return "/".join(f"{round(weight, 3):g}" for weight in weights)


def chosen_evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, evenly spread, with the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))})


@dataclass(frozen=True)
class _Panel:
    pair: tuple[str, str]
    series: Sequence[tuple[str, str]]
    """(method, settings) of the lines."""


def pareto_figure(results: Sequence[Result], adapters: Sequence[str], pairs: Sequence[tuple[str, str]]) -> bytes:
    """Mean rewards over the preferences with 95 % intervals within pictures: a panel per pair of rewards and 8 methods.

    A method has a colour and a marker, a KL scale a line style. Markers are open and become smaller from method to method,
    so that points that coincide show as rings. The numbers are the weight of the reward on the x axis.

    Args:
        results: of the whole sweep.
        adapters: names, in the order of the weights.
        pairs: the rewards on the axes.

    Returns:
        A PNG file's content.
    """
    from matplotlib.figure import Figure

    series = list(dict.fromkeys((r.method, r.settings) for r in results if r.method != "base"))
    panels = [_Panel(pair, part) for pair in pairs for part in in_panels(series)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 4.6 * rows + 1), layout="constrained")
    axes = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).flat)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_fronts(axis, panel, of_group(results, adapters, panel.pair), adapters, series)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    known: dict[str, Any] = {}
    for axis in axes:
        known |= {text: handle for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(known.values()),
        list(known),
        loc="outside lower center",
        ncols=2 * columns,
        frameon=False,
        fontsize="small",
    )
    return png(figure)


def in_panels(series: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Methods in groups of at most `MOST_METHODS`, each with blend in it if there is a blend."""
    if len(series) <= MOST_METHODS:
        return [list(series)]
    common = [one for one in series if one[0] == "blend"][:1]
    others, room = [one for one in series if one not in common], MOST_METHODS - len(common)
    return [common + others[start : start + room] for start in range(0, len(others), room)]


def _draw_fronts(
    axis: Any,
    panel: _Panel,
    results: Sequence[Result],
    adapters: Sequence[str],
    series: Sequence[tuple[str, str]],
) -> None:
    first = adapters.index(panel.pair[0]) if panel.pair[0] in adapters else 0
    spread = [within_pictures(results, name) for name in panel.pair] if results else [[], []]
    scales = list(dict.fromkeys(result.kl_scale for result in results if result.method != "base"))
    for place, (method, settings) in enumerate(panel.series):
        for kl_scale in scales:
            own = [
                i for i, r in enumerate(results) if (r.method, r.settings, r.kl_scale) == (method, settings, kl_scale)
            ]
            own.sort(key=lambda i: results[i].weights[first])
            name = label(method, settings)
            text = f"{name}, KL scale {kl_scale:g}" if len(scales) > 1 and is_scaled(method) else name
            style = _STYLES[scales.index(kl_scale) % len(_STYLES)] if is_scaled(method) else "-"
            colour = f"C{series.index((method, settings)) % 10}"
            _draw_front(axis, [(spread[0][i], spread[1][i]) for i in own], text, style, colour, place)
            _mark_weights(axis, [(spread[0][i][0], spread[1][i][0], results[i].weights[first]) for i in own], colour)
    base = [i for i, result in enumerate(results) if result.method == "base"][:1]
    for i in base:
        axis.plot(spread[0][i][0], spread[1][i][0], "k*", markersize=11, linestyle="none", label="base")
    axis.set(xlabel=panel.pair[0], ylabel=panel.pair[1])
    axis.grid(alpha=0.25)


def _draw_front(
    axis: Any,
    points: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    text: str,
    style: str,
    colour: str,
    place: int,
) -> None:
    if not points:
        return
    axis.errorbar(
        [x[0] for x, _ in points],
        [y[0] for _, y in points],
        xerr=[x[1] for x, _ in points],
        yerr=[y[1] for _, y in points],
        marker=_MARKERS[place],
        markersize=11 - place,
        markerfacecolor="none",
        linestyle=style,
        linewidth=2.2 - 0.2 * place,
        elinewidth=0.6,
        color=colour,
        alpha=0.85,
        label=text,
    )


def _mark_weights(axis: Any, points: Sequence[tuple[float, float, float]], colour: str) -> None:
    for number in chosen_evenly(len(points), MOST_PREFERENCES):
        x, y, weight = points[number]
        axis.annotate(
            f"{round(weight, 2):g}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=6, color=colour
        )


def scale_figure(results: Sequence[Result]) -> bytes:
    """Weighted reward and KL to the base over the KL scale, a colour per method, a line style per preference. Returns a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    scaled = [result for result in results if is_scaled(result.method)]
    methods = list(dict.fromkeys((result.method, result.settings) for result in scaled))[:MOST_METHODS]
    weights = list(dict.fromkeys(result.weights for result in scaled))
    shown = [weights[number] for number in chosen_evenly(len(weights), len(_STYLES))]
    for place, (method, settings) in enumerate(methods):
        for style, preference in zip(_STYLES, shown, strict=False):
            own = [r for r in scaled if (r.method, r.settings, r.weights) == (method, settings, preference)]
            text = f"{label(method, settings)}, {write_weights(preference)}"
            for panel, columns in zip(panels, ([r.weighted for r in own], [r.columns["kl"] for r in own]), strict=True):
                _draw_scales(panel, own, columns, text, f"C{place}", style)
    panels[0].set(xlabel="KL scale", ylabel="r(w)")
    panels[1].set(xlabel="KL scale", ylabel="KL to the base [nats]")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="x-small")
    return png(figure)


def _draw_scales(
    panel: Any, results: Sequence[Result], columns: Sequence[Array | None], name: str, colour: str, style: str
) -> None:
    known = [(r.kl_scale, *r.interval(c)) for r, c in zip(results, columns, strict=True) if c is not None]
    known.sort()
    x, y, half = ([point[k] for point in known] for k in range(3))
    panel.errorbar(x, y, yerr=half, marker=".", color=colour, linestyle=style, label=name)


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()
