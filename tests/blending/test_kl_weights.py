"""Unequal KL weights: the coefficients are exact for closed-form Gaussians, continuous, and the same in node and sweep."""

import itertools
import math

import pytest
from diffusion_blend.blending.kl_weights import kl_weight_factors, parse_kl_weight
from diffusion_blend.blending.preference import Preference
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["text", "beauty", "colour"]
alphas = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)
weights = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda values: sum(values) > 1e-3)


@given(weights, alphas, st.floats(0.1, 5), st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.floats(-3, 3))
def test_the_blended_score_is_that_of_the_mixed_reward(values, alpha, kl_scale, slopes, x):
    """Base N(0, 1), rewards ``a_i x + b_i x^2``: adapter i is the base times ``exp(r_i / alpha_i)``, up to a constant."""
    curves = (-0.1, -0.2, -0.4)
    preference = Preference(tuple(values), kl_scale)
    w, c = preference.normalised(NAMES), preference.coefficients(NAMES, alpha)

    def gradient(i):
        return slopes[i] + 2 * curves[i] * x

    blended = -x + sum(c_i * gradient(i) / alpha[i] for i, c_i in enumerate(c))
    beta = sum(w_i * a for w_i, a in zip(w, alpha, strict=True)) / kl_scale
    assert blended == pytest.approx(-x + sum(w_i * gradient(i) for i, w_i in enumerate(w)) / beta, rel=1e-9, abs=1e-9)


@given(weights, alphas, st.floats(-5, 5))
def test_the_coefficients_sum_to_the_kl_scale(values, alpha, kl_scale):
    assert math.fsum(Preference(tuple(values), kl_scale).coefficients(NAMES, alpha)) == pytest.approx(
        kl_scale, abs=1e-9
    )


@given(weights, weights, st.lists(st.one_of(st.none(), st.floats(0.1, 1)), min_size=3, max_size=3))
def test_a_small_step_of_the_weights_is_a_small_step_of_the_coefficients(start, end, alpha):
    """With alphas at most 10 times apart a coefficient has a slope of at most 20 in each weight."""
    a, b = Preference(tuple(start)).normalised(NAMES), Preference(tuple(end)).normalised(NAMES)
    step = 1e-4
    near = tuple((1 - step) * x + step * y for x, y in zip(a, b, strict=True))
    before, after = (Preference(w).coefficients(NAMES, alpha) for w in (a, near))
    assert max(abs(x - y) for x, y in zip(before, after, strict=True)) <= 40 * step


@pytest.mark.parametrize("alpha", [(0.1, 1.0, 0.3), (0.1, None, 1.0), (None, 0.1, 1.0)])
def test_continuous_at_every_corner_and_edge(alpha):
    for corner, other in itertools.permutations(range(3), 2):
        exact = tuple(float(i == corner) for i in range(3))
        assert Preference(exact).coefficients(NAMES, alpha) == exact
        near = [0.0] * 3
        near[corner], near[other] = 0.998, 0.002
        moved = Preference(tuple(near)).coefficients(NAMES, alpha)
        assert moved[corner] == pytest.approx(1, abs=0.03)
    for missing in range(3):
        edge = tuple(0.0 if i == missing else 0.5 for i in range(3))
        inside = tuple(1e-6 if i == missing else w for i, w in enumerate(edge))
        before, after = (Preference(w).coefficients(NAMES, alpha) for w in (edge, inside))
        assert after == pytest.approx(before, abs=1e-4)


def test_by_hand():
    assert Preference((0.5, 0.5), 2.0).coefficients(NAMES[:2], [0.1, 0.4]) == pytest.approx((0.4, 1.6))
    assert Preference((0.998, 0.002)).coefficients(NAMES[:2], [0.1, 1.0]) == pytest.approx(
        (0.0998 / 0.1018, 0.002 / 0.1018)
    )


def test_an_unknown_kl_weight_is_the_mean_of_the_known_ones():
    assert kl_weight_factors((0.5, 0.25, 0.25), (0.1, None, 0.3)) == kl_weight_factors(
        (0.5, 0.25, 0.25), (0.1, 0.2, 0.3)
    )


@pytest.mark.parametrize("alpha", [(None,) * 3, (0.2,) * 3, (0.2, None, 0.2)])
def test_equal_or_unknown_kl_weights_change_nothing(alpha):
    assert kl_weight_factors((0.2, 0.3, 0.5), alpha) == (1.0, 1.0, 1.0)


def test_huge_and_tiny_kl_weights_stay_finite():
    factors = kl_weight_factors((0.5, 0.5), (1e308, 1e-308))
    assert factors == pytest.approx((2.0, 0.0))


@pytest.mark.parametrize("kl_weight", [0.0, -1.0, math.nan, math.inf])
def test_impossible_kl_weights_are_refused(kl_weight):
    with pytest.raises(ValueError, match="KL weight"):
        Preference((1.0, 1.0)).coefficients(NAMES[:2], [0.1, kl_weight])


def test_reading_the_metadata_entry():
    assert parse_kl_weight(None) is None
    assert parse_kl_weight("0") is None  # trained without a KL penalty
    assert parse_kl_weight("0.25") == 0.25
    for text in ("-0.1", "nan", "inf", "a lot"):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            parse_kl_weight(text)
