"""Preferences: laws of the affine coefficients, and the message of every refusal."""

import math

import pytest
from diffusion_blend.blending.equal_preference import EqualPreference
from diffusion_blend.blending.preference import Preference
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["text", "beauty", "colour"]
weights = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda values: sum(values) > 1e-6)


@given(weights, st.floats(-5, 5))
def test_coefficients_sum_to_the_kl_scale(values, kl_scale):
    coefficients = Preference(tuple(values), kl_scale).coefficients(NAMES)
    assert math.fsum(coefficients) == pytest.approx(kl_scale, abs=1e-12)


@given(weights, st.floats(0.01, 50))
def test_only_ratios_of_weights_count(values, factor):
    scaled = Preference(tuple(value * factor for value in values)).normalised(NAMES)
    assert scaled == pytest.approx(Preference(tuple(values)).normalised(NAMES), abs=1e-9)


@given(weights, st.permutations(range(3)))
def test_permuting_adapters_permutes_coefficients(values, order):
    coefficients = Preference(tuple(values), 1.5).coefficients(NAMES)
    permuted = Preference(tuple(values[i] for i in order), 1.5).coefficients([NAMES[i] for i in order])
    assert permuted == pytest.approx([coefficients[i] for i in order])


def test_chained_weights_come_first_and_the_last_kl_scale_counts():
    chained = Preference((1, 2, 3, 4), 0.5).followed_by(Preference((5, 0, 0, 0), 2.0))
    assert chained == Preference((1, 2, 3, 4, 5, 0, 0, 0), 2.0)


@pytest.mark.parametrize("huge", [8.98846567431158e307, 1.7976931348623157e308, 5e-324])
def test_weights_whose_sum_would_overflow_or_vanish_count_by_their_ratios(huge):
    assert Preference((0.0, huge, huge)).normalised(NAMES) == (0.0, 0.5, 0.5)


def test_trailing_zero_weights_are_no_error():
    assert Preference((0.5, 0.5, 0.0, 0.0)).normalised(NAMES[:2]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "kl_scale", "message"),
    [
        ((0.5, math.nan), 1.0, "weight_2 is nan"),
        ((math.inf, 0.5), 1.0, "weight_1 is inf"),
        ((0.5, -0.1), 1.0, "weight_2 is -0.1.*negative KL scale"),
        ((0.5, 0.5), math.nan, "kl_scale is nan"),
        ((0.5, 0.5), -math.inf, "kl_scale is -inf"),
        ((0.5, 0.5), 1e308, "kl_scale is 1e\\+308: it must be a number from -1000 to 1000"),
    ],
)
def test_bad_numbers_are_refused_where_they_enter(values, kl_scale, message):
    with pytest.raises(ValueError, match=message):
        Preference(values, kl_scale)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ((0.0, 0.0, 0.0, 0.0), NAMES, "All weights are 0 for text, beauty, colour"),
        ((0.5, 0.5, 0.2), NAMES[:2], "weight_3 is 0.2, but there is no adapter 3, only text, beauty"),
        ((0.5, 0.5), NAMES, "2 weights for 3 adapters"),
        ((0.5, 0.5), [], "no adapter to blend"),
    ],
)
def test_weights_that_do_not_match_the_adapters_are_refused(values, names, message):
    with pytest.raises(ValueError, match=message):
        Preference(values).normalised(names)


def test_equal_preference_is_equal_weights_of_any_number() -> None:
    equal = EqualPreference(1.5)
    for count in (1, 2, 3, 7):
        names = [f"adapter {i}" for i in range(count)]
        alphas = [0.1 * (i + 1) for i in range(count)]
        written = Preference((0.25,) * count, 1.5)
        assert equal.coefficients(names, alphas) == pytest.approx(written.coefficients(names, alphas))
        assert equal.arranged([[True, False], [True] * (count - 1)], names).coefficients(names) == pytest.approx(
            [1.5 / count] * count
        )
        assert equal.described(names) == written.described(names)
    assert equal.at_kl_scale(0.5).coefficients(["a", "b"]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="2 weights cannot follow equal weights"):
        equal.followed_by(Preference((1.0, 0.0)))
