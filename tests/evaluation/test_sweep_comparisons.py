"""Methods beside adapters that were trained for the mixture: tests of equality in standard deviations, by scipy's own tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusion_blend.artifacts.tables import markdown_table
from diffusion_blend.evaluation.intervals import equivalence
from diffusion_blend.evaluation.sweep.comparisons import against_trained
from diffusion_blend.evaluation.sweep.config import SweepConfig
from diffusion_blend.evaluation.sweep.report import make_tables
from diffusion_blend.evaluation.sweep.statistics import collect_results
from numpy.typing import NDArray
from scipy import stats

COUNT = 60
Array = NDArray[np.float64]


def rows(method: str, weights: tuple[float | None, float | None], values: Array) -> list[dict[str, Any]]:
    """Rows whose two rewards are equal, so that r(w) is the value for every preference."""
    common = {"method": method, "w_a": weights[0], "w_b": weights[1], "kl_scale": 1.0}
    return [
        common | {"image": i, "prompt": str(i), "a": x, "b": x, "kl": None, "seconds": 1.0, "calls": 1.0}
        for i, x in enumerate(values.tolist())
    ]


def compared(*given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [row for some in given for row in some]
    return against_trained(collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0]))


def test_differences_are_in_deviations_of_the_base_and_tested_by_scipys_t_tests() -> None:
    generator = np.random.default_rng(4)
    base = generator.normal(3, 2.0, COUNT)
    trained = base + generator.normal(1, 0.5, COUNT)
    soup = trained + generator.normal(0.03, 0.12, COUNT)
    pair = (0.5, 0.5)
    [of_base, of_soup] = compared(
        rows("base", (None, None), base), rows("morl", pair, trained), rows("soup", pair, soup)
    )
    difference = (soup - trained) / base.std(ddof=1)
    above = stats.ttest_1samp(difference, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, 0.05, alternative="less").pvalue
    assert of_soup["r(w) - MORL, sd"][0] == pytest.approx(difference.mean())
    assert of_soup["p equal"] == pytest.approx(max(above, below)) and of_soup["p not below"] == pytest.approx(above)
    assert above < below < 0.05, "the case is one where both are shown"
    assert of_base["method"] == "base" and of_base["p not below"] > 0.99 and of_base["p equal"] > 0.99


def test_a_better_method_is_not_below_and_not_equal() -> None:
    trained = np.random.default_rng(5).normal(0, 1, COUNT)
    better = trained + 1 + np.random.default_rng(6).normal(0, 0.1, COUNT)
    [row] = compared(rows("morl", (1.0, 0.0), trained), rows("stacked", (1.0, 0.0), better))
    assert row["p not below"] < 1e-6 and row["p equal"] > 0.99


def test_only_mixtures_with_a_trained_adapter_are_compared() -> None:
    values = np.random.default_rng(7).normal(0, 1, COUNT)
    found = compared(
        rows("morl", (0.5, 0.5), values), rows("soup", (0.5, 0.5), values + 1), rows("soup", (0.25, 0.75), values)
    )
    assert [row["weights"] for row in found] == [(0.5, 0.5)]
    assert compared(rows("soup", (0.5, 0.5), values)) == []


def test_a_margin_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="margin of 0: it must be above 0"):
        equivalence([0.0, 1.0], 0, np.arange(2))
    assert np.isnan(equivalence([1.0], 0.1, np.arange(1)).p_below)
    assert [equivalence([x, x], 0.05, np.arange(2)).p_below for x in (0.1, -0.1)] == [0.0, 1.0]


def test_a_method_with_preferences_of_its_own_does_not_shrink_the_hypervolumes() -> None:
    """Hypervolumes are over the preferences that all methods have."""
    generator = np.random.default_rng(8)
    found = []
    for weights in [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]:
        for method in ("blend", "soup", *(["corrected"] if weights == (0.5, 0.5) else [])):
            made = rows(method, weights, generator.normal(0, 1, COUNT))
            found += [row | {"a": row["a"] + weights[0], "b": row["b"] + weights[1]} for row in made]
    results = collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0])

    def preferences(**own: Any) -> dict[str, int]:
        config = SweepConfig("out", {"a": "a", "b": "b"}, {"a": "a", "b": "b"}, resamples=10, **own)
        return {
            row["method"]: row["preferences"]
            for row in make_tables(results, ["a", "b"], ["a", "b"], config)["hypervolume"]
        }

    assert preferences(method_weights={"corrected": [[0.5, 0.5]]}) == {"blend": 3, "soup": 3}
    assert preferences() == {}, "one preference is no front"


def test_hypervolumes_are_of_the_kl_scales_that_were_asked_for() -> None:
    """Methods without a KL scale stand at 1, which makes no table of its own, and rows without blend have no difference."""
    generator = np.random.default_rng(9)
    found = []
    for weights in [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]:
        for method, scale in (("blend", 0.5), ("morl", 1.0), ("soup", 0.5), ("soup", 2.0)):
            made = [row | {"kl_scale": scale} for row in rows(method, weights, generator.normal(0, 1, COUNT))]
            found += [row | {"a": row["a"] + weights[0], "b": row["b"] + weights[1]} for row in made]
    results = collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0])
    config = SweepConfig("out", {"a": "a", "b": "b"}, {"a": "a", "b": "b"}, resamples=10)
    table = make_tables(results, ["a", "b"], ["a", "b"], config)["hypervolume"]
    assert [(row["method"], row["kl_scale"]) for row in table] == [
        ("blend", 0.5),
        ("morl", 0.5),
        ("soup", 0.5),
        ("morl", 2.0),
        ("soup", 2.0),
    ]
    assert [bool(np.isfinite(row["- blend"])) for row in table] == [True, True, True, False, False]
    assert "| soup |" in markdown_table(table)
