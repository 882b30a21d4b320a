"""Means, win rates and hypervolumes of known data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diffusion_blend.evaluation.intervals import win_rate
from diffusion_blend.evaluation.sweep.statistics import (
    against_blend,
    collect_results,
    hypervolumes,
    means,
    of_group,
    reward_groups,
    within_pictures,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

ADAPTERS = ["a", "b"]


def rows(
    method: str, weights: tuple[float | None, float | None], a: list[float], b: list[float]
) -> list[dict[str, Any]]:
    return [
        {
            "method": method, "w_a": weights[0], "w_b": weights[1], "kl_scale": 0.0 if weights[0] is None else 1.0,
            "image": i, "a": x, "b": y, "kl": None, "seconds": 2.0, "calls": 5.0,
        }
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]  # fmt: skip


def test_means_and_intervals_are_scipys() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 12))
    found = rows("soup", (0.25, 0.75), a.tolist(), b.tolist())
    [row] = means(collect_results(found, ADAPTERS, ADAPTERS, [0.5, 2.0]), ADAPTERS)
    for name, values in (("a", a), ("b", b), ("r(w)", 0.25 * a / 0.5 + 0.75 * b / 2.0)):
        low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
        assert row[name] == pytest.approx(((low + high) / 2, (high - low) / 2))
    assert math.isnan(row["KL"][0]) and row["s/picture"] == 2 and row["calls/picture"] == 5


def test_intervals_within_pictures_leave_shared_chance_out() -> None:
    """Of two points, sqrt(2) times either bar is the paired interval of their difference."""
    chance = np.random.default_rng(0).normal(scale=50, size=15)
    a, b = chance + np.random.default_rng(1).normal(size=(2, 15))
    results = collect_results(
        rows("blend", (1, 0), a.tolist(), a.tolist()) + rows("soup", (1, 0), b.tolist(), b.tolist()),
        ADAPTERS,
        ADAPTERS,
        [1.0, 1.0],
    )
    first, second = within_pictures(results, "a")
    paired = float(stats.t.ppf(0.975, 14) * stats.sem(a - b))
    assert (first[0], second[0]) == pytest.approx((a.mean(), b.mean()))
    assert (2**0.5 * first[1], 2**0.5 * second[1]) == pytest.approx((paired, paired))
    [(_, alone)] = within_pictures(results[:1], "a")
    assert alone == pytest.approx(float(stats.t.ppf(0.975, 14) * stats.sem(a)))


def test_the_base_stands_beside_every_preference() -> None:
    found = rows("base", (None, None), [1, 2], [3, 5]) + rows("soup", (1, 0), [0, 0], [0, 0])
    found += rows("soup", (0.5, 0.5), [0, 0], [0, 0])
    results = collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0])
    weighted = {r.weights: r.weighted.tolist() for r in results if r.method == "base" and r.weighted is not None}
    assert weighted == {(1.0, 0.0): [1, 2], (0.5, 0.5): [2, 3.5]}


def test_win_rate_is_paired_and_leaves_ties_out() -> None:
    found = rows("blend", (1, 0), [0, 10, 20, 30, 40], [0] * 5) + rows("soup", (1, 0), [1, 11, 21, 29, 40], [0] * 5)
    [row] = against_blend(collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0]))
    assert row["wins"] == 0.75 and row["ties"] == 1
    gaps = np.asarray([1, 1, 1, -1, 0])
    assert row["r(w) - blend"][0] == pytest.approx(0.4)
    assert row["rms"] == pytest.approx(math.sqrt(4 / 5))
    assert row["r(w) - blend"][1] == pytest.approx(float(stats.t.ppf(0.975, 4) * stats.sem(gaps)))
    # Wilson (1927): (p + z^2/2n +- z sqrt(p q / n + z^2 / 4 n^2)) / (1 + z^2/n)
    p, n, z = 0.75, 4, float(stats.norm.ppf(0.975))
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (row["low"], row["high"]) == pytest.approx(
        ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    )
    assert all(math.isnan(value) for value in win_rate(np.zeros(0, bool), np.zeros(0, int)))


def test_hypervolume_of_points_known_by_hand() -> None:
    """In the box 0..1: blend has (0, 1), (.5, .5), (1, 0): .25. soup's middle is (.25, .5): .125. base is the corner."""
    found = rows("base", (None, None), [0] * 3, [0] * 3)
    for method, middle in (("blend", (3.0, 20.0)), ("soup", (1.5, 20.0))):
        found += rows(method, (0, 1), [0] * 3, [40] * 3)
        found += rows(method, (0.5, 0.5), [middle[0]] * 3, [middle[1]] * 3)
        found += rows(method, (1, 0), [6] * 3, [0] * 3)
    results = collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0])
    volumes = {row["method"]: row for row in hypervolumes(results, ADAPTERS, ADAPTERS, 50, 0)}
    assert volumes["base"]["hypervolume"] == 0
    assert volumes["blend"]["hypervolume"] == pytest.approx(0.25)
    assert volumes["soup"]["hypervolume"] == pytest.approx(0.125)
    assert volumes["soup"]["- blend"] == pytest.approx(-0.125)
    # Every picture is the same, so resampling them changes nothing.
    assert (volumes["soup"]["low"], volumes["soup"]["high"]) == pytest.approx((0.125, 0.125))


def test_hypervolume_interval_ignores_chance_that_all_methods_share() -> None:
    chance = np.random.default_rng(0).normal(scale=100, size=20)
    found: list[dict[str, Any]] = []
    for method, gain in (("blend", 1.0), ("soup", 0.5)):
        found += rows(method, (1, 0), (chance + gain).tolist(), chance.tolist())
        found += rows(method, (0, 1), chance.tolist(), (chance + gain).tolist())
    results = collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0])
    [_, soup] = hypervolumes(results, ADAPTERS, ADAPTERS, 200, 0)
    assert soup["- blend, low"] == pytest.approx(soup["- blend"], abs=1e-6) == soup["- blend, high"]
    noisy = rows("blend", (1, 0), chance.tolist(), [0] * 20) + rows("soup", (1, 0), chance[::-1].tolist(), [1] * 20)
    noisy += rows("blend", (0, 1), [0] * 20, chance.tolist()) + rows("soup", (0, 1), [1] * 20, chance[::-1].tolist())
    [_, soup] = hypervolumes(collect_results(noisy, ADAPTERS, ADAPTERS, [1.0, 1.0]), ADAPTERS, ADAPTERS, 200, 0)
    assert soup["high"] - soup["low"] > 0.05  # chance of one's own does not cancel


def test_methods_are_compared_on_shared_preferences_only() -> None:
    found = rows("blend", (0, 1), [0] * 3, [1] * 3) + rows("blend", (0.5, 0.5), [0.9] * 3, [0.9] * 3)
    found += rows("blend", (1, 0), [1] * 3, [0] * 3) + rows("morl", (0, 1), [0] * 3, [1] * 3)
    found += rows("morl", (1, 0), [1] * 3, [0] * 3)
    results = collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0])
    assert [(row["preferences"], row["- blend"]) for row in hypervolumes(results, ADAPTERS, ADAPTERS, 5, 0)] == [
        (2, 0.0), (2, 0.0),
    ]  # fmt: skip


def test_groups_of_rewards() -> None:
    assert reward_groups(["a", "b", "c"], ["a", "b", "c", "held"]) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("a", "b", "c"),
    ]
    assert reward_groups(["lora"], ["x", "y"]) == [("x", "y")]
    found = rows("blend", (1, 0), [0], [0]) + rows("blend", (0.5, 0.5), [0], [0])
    results = collect_results(found, ADAPTERS, ADAPTERS, [1.0, 1.0])
    assert [r.weights for r in of_group(results, ADAPTERS, ("a",))] == [(1.0, 0.0)]
    assert len(of_group(results, ADAPTERS, ("x", "y"))) == 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_hypervolume_lies_in_the_box_and_grows_with_points(points: list[tuple[float, float]]) -> None:
    corners = [(0.0, 0.0), (1.0, 1.0)]  # the base spans the box
    found = [row for i, (x, y) in enumerate(corners) for row in rows("base" if i == 0 else "best", (1, 0), [x], [y])]
    found += [row for x, y in points for row in rows("some", (1, 0), [x], [y])][:1]
    found += rows("more", (1, 0), [max(x for x, _ in points)], [max(y for _, y in points)])
    volumes = {
        row["method"]: row["hypervolume"]
        for row in hypervolumes(collect_results(found, ADAPTERS, ADAPTERS, [1, 1]), ADAPTERS, ADAPTERS, 1, 0)
    }
    assert volumes["some"] == pytest.approx(points[0][0] * points[0][1])
    assert 0 <= volumes["some"] <= volumes["more"] <= volumes["best"] == pytest.approx(1)
