"""Tests of equality and intervals of ratios, against scipy's own tests and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusion_blend.evaluation.gaussian.claims import MARGIN, equality_table, ratio_table
from diffusion_blend.evaluation.intervals import equivalence, interval, log_ratios, ratio_interval
from scipy import stats


def singles(count: int) -> np.ndarray:
    return np.arange(count)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_it_is_two_one_sided_t_tests(shift: float) -> None:
    values = np.random.default_rng(0).normal(shift, 0.3, 12)
    found = equivalence(values, 0.3, singles(12))
    p = max(
        stats.ttest_1samp(values, -0.3, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.3, alternative="less").pvalue,
    )
    assert found.p == pytest.approx(p) and found.mean == pytest.approx(values.mean())
    inside = found.mean - found.half > -0.3 and found.mean + found.half < 0.3
    assert found.is_equal == inside == (p < 0.05)


def test_values_of_a_cluster_count_as_one() -> None:
    values = np.random.default_rng(1).normal(0, 0.1, 10)
    once, twice = (
        equivalence(values, 0.1, singles(10)),
        equivalence(np.repeat(values, 3), 0.1, np.repeat(singles(10), 3)),
    )
    assert twice.p == pytest.approx(once.p) and twice.half == pytest.approx(once.half)
    assert equivalence(np.repeat(values, 3), 0.1, singles(30)).p < once.p  # as if there were more data


def test_few_data_around_zero_are_no_equality() -> None:
    assert not equivalence([-0.5, 0.4, 0.1], 0.2, singles(3)).is_equal
    assert math.isnan(equivalence([0.0], 0.2, singles(1)).p) and not equivalence([0.0], 0.2, singles(1)).is_equal
    assert equivalence([0.1, 0.1], 0.2, singles(2)).is_equal and not equivalence([0.3, 0.3], 0.2, singles(2)).is_equal
    with pytest.raises(ValueError, match="margin of 0: it must be above 0"):
        equivalence([0.0, 1.0], 0, singles(2))


def test_a_difference_of_the_margin_is_called_equal_in_one_of_twenty() -> None:
    draws = np.random.default_rng(2).normal(0.2, 0.1, (4000, 8))
    share = np.mean([equivalence(row, 0.2, singles(8)).is_equal for row in draws])
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_a_ratio_is_the_mean_of_the_logarithms() -> None:
    first, second = [2.0, 8.0, 4.0], [1.0, 1.0, 1.0]
    ratio = ratio_interval(first, second, singles(3))
    mean, half = interval(np.log(first))
    assert ratio.mean == pytest.approx(4.0)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(mean - half), math.exp(mean + half)))
    assert str(ratio) == f"4.00 ({ratio.low:.2f} to {ratio.high:.2f})"
    assert str(ratio_interval(first, second, np.zeros(3, dtype=np.int64))) == "4.00"  # one seed has no interval
    other = ratio_interval(second, first, singles(3))
    assert (1 / other.high, 1 / other.low) == pytest.approx((ratio.low, ratio.high))  # whichever way round
    with pytest.raises(ValueError, match=r"ratios of 0\.0: every number must be above 0"):
        log_ratios([1.0, 0.0], [1.0, 1.0])


def test_the_tables_have_a_row_for_every_setting_and_pool_over_seeds() -> None:
    generator = np.random.default_rng(3)

    def row(soup: float) -> dict[str, float]:
        blend = float(generator.uniform(0.1, 0.2))
        near = blend * float(generator.uniform(0.97, 1.03))
        return {"blend": blend, "soup": soup * blend, "stochastic, stratified": near, "trained for w": blend / 2}

    measured = {(("right", "up"), alpha): [row(2 + alpha) for _ in range(6)] for alpha in (1.0, 0.25)}
    ratios, equalities = ratio_table(measured), equality_table(measured)
    assert [row["rewards"] for row in ratios] == ["right/up"] * 2 + ["all, alpha 1 and 2", "all, alpha .25", "all"]
    assert ratios[0]["soup / blend"] == "3.00 (3.00 to 3.00)" and ratios[1]["soup / blend"].startswith("2.25 (")
    assert ratios[-1]["soup / blend"].startswith(f"{math.sqrt(3 * 2.25):.2f} (")
    assert all(row["stochastic, stratified / blend"].startswith("equal") for row in equalities)
    assert all(row["blend / trained for w"].startswith("not shown: 2.00 to 2.00") for row in equalities)
    assert MARGIN < 2
