"""Figures stay readable however large the sweep: few methods a panel, few columns, the base once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusion_blend.evaluation.intervals import clustered_interval, interval, win_rate
from diffusion_blend.evaluation.sweep.figures import MOST_METHODS, chosen_evenly, in_panels, pareto_figure, scale_figure
from diffusion_blend.evaluation.sweep.picture_grid import picture_grid
from diffusion_blend.evaluation.sweep.statistics import collect_results
from PIL import Image


def rows(method: str, w: float | None, kl_scale: float, shift: float) -> list[dict[str, Any]]:
    other = None if w is None else 1 - w
    return [
        {
            "method": method, "w_a": w, "w_b": other, "kl_scale": kl_scale, "image": i, "prompt": f"p{i}",
            "a": (w or 0) + shift + 0.01 * i, "b": (other or 0) + shift, "kl": 1.0, "seconds": 1.0, "calls": 1.0,
        }
        for i in range(3)
    ]  # fmt: skip


def size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def test_a_panel_has_at_most_eight_methods_and_blend_is_in_each() -> None:
    series = [(f"m{i}", "") for i in range(12)] + [("blend", "")]
    panels = in_panels(series)
    assert all(len(panel) <= MOST_METHODS and panel[0] == ("blend", "") for panel in panels)
    assert sorted({one for panel in panels for one in panel}) == sorted(series)
    assert in_panels(series[:8]) == [series[:8]]


def test_401_preferences_make_figures_of_ordinary_size(tmp_path: Path) -> None:
    found = rows("base", None, 0.0, 0.0)
    for w in np.linspace(0, 1, 401):
        found += rows("blend", float(w), 1.0, 0.5) + rows("soup", float(w), 1.0, 0.5)
    results = collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0])
    assert max(size(pareto_figure(results, ["a", "b"], [("a", "b")]))) < 1500
    assert max(size(scale_figure(results))) < 2000
    assert len(chosen_evenly(401, 9)) == 9 and chosen_evenly(401, 9)[::8] == [0, 400] and chosen_evenly(2, 9) == [0, 1]


def lines(results: Any) -> list[Any]:
    """The lines that are drawn, caught from matplotlib."""
    from unittest import mock

    drawn: list[Any] = []
    with mock.patch(
        "matplotlib.axes.Axes.errorbar", autospec=True, side_effect=lambda axis, *a, **k: drawn.append((a, k))
    ):
        pareto_figure(results, ["a", "b"], [("a", "b")])
    return drawn


def test_kl_scales_have_line_styles_methods_colours_and_coinciding_points_rings() -> None:
    found = [row for m in ("blend", "soup") for s in (0.5, 1.0) for w in (0.0, 1.0) for row in rows(m, w, s, 0.0)]
    drawn = [keywords for _, keywords in lines(collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0]))]
    assert len(drawn) == 4
    assert len({k["linestyle"] for k in drawn}) == 2 and len({k["color"] for k in drawn}) == 2
    assert {k["markerfacecolor"] for k in drawn} == {"none"} and len({k["markersize"] for k in drawn}) == 2
    assert {k["label"] for k in drawn} == {f"{m}, KL scale {s}" for m in ("blend", "soup") for s in ("0.5", "1")}


def test_the_base_is_drawn_once_and_is_no_line() -> None:
    found = rows("base", None, 0.0, 0.0) + [row for w in (0.0, 0.5, 1.0) for row in rows("blend", w, 1.0, 0.5)]
    assert len(lines(collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0]))) == 1


def test_prompts_stand_below_the_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    cells = {("blend", "1/0"): [tmp_path / "x.png"]}
    without, within = size(picture_grid(cells)), size(picture_grid(cells, ["a red square", "a dog"]))
    assert within[0] == without[0] and within[1] > without[1]


def test_intervals_of_equal_clusters_are_those_of_the_clusters_means() -> None:
    values = np.random.default_rng(0).normal(size=(7, 4)) + np.random.default_rng(1).normal(size=(7, 1))
    clusters = np.repeat(np.arange(7), 4)
    assert clustered_interval(values.ravel(), clusters) == pytest.approx(interval(values.mean(1)))
    assert clustered_interval(values.ravel(), clusters)[1] > interval(values.ravel())[1]
    holes = np.append(values.ravel(), [np.nan, np.nan])
    assert clustered_interval(holes, np.append(clusters, [0, 9])) == clustered_interval(values.ravel(), clusters)


def test_a_clustered_win_rate_has_a_wider_interval() -> None:
    wins = np.repeat(np.asarray([True, True, False, True, False]), 6)
    alone, together = win_rate(wins, np.arange(30)), win_rate(wins, np.repeat(np.arange(5), 6))
    assert alone[0] == together[0] == 0.6 and together[2] - together[1] > 1.5 * (alone[2] - alone[1])
