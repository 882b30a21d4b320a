"""The sweep's preferences against enumeration and numpy, its labels read back, and the message of every refusal."""

import itertools
import math
import re

import numpy as np
import pytest
from diffusion_blend.blending.changing_preference import PreferenceSchedule
from diffusion_blend.blending.preference import Preference
from diffusion_blend.nodes.adapters.files import RewardLoRA, RewardLoRAs
from diffusion_blend.nodes.engine.sweep_points import labels, number
from diffusion_blend.nodes.sweep import PreferenceSweep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # no time limit, because a busy machine is no failure


def adapters(count, kl_weights=None):
    kl_weights = kl_weights or [None] * count
    return RewardLoRAs(
        tuple(RewardLoRA(f"adapter {i}", f"{i}.safetensors", {}, kl_weights[i], 1.0) for i in range(count))
    )


def sweep(kind, points=5, divisions=4, kl_scale_from=0.0, kl_scale_to=2.0, **connected):
    result = PreferenceSweep.execute(kind, points, divisions, kl_scale_from, kl_scale_to, **connected)
    return result.args


def weights(preferences, count):
    return np.array([preference.weights[:count] for preference in preferences])


@patient
@given(st.integers(2, 5), st.integers(1, 6))
def test_a_simplex_is_every_share_of_the_divisions(count, divisions):
    preferences, names = sweep("simplex", divisions=divisions, reward_loras=adapters(count))
    every = [parts for parts in itertools.product(range(divisions + 1), repeat=count) if sum(parts) == divisions]
    assert [tuple(round(w * divisions) for w in p.weights) for p in preferences] == sorted(every, reverse=True)
    assert weights(preferences, count) * divisions == pytest.approx(np.array(sorted(every, reverse=True)), abs=1e-12)
    assert {p.kl_scale for p in preferences} == {1.0}
    assert len(set(names)) == len(names) == len(preferences)


def test_three_adapters_with_four_divisions_are_fifteen_points():
    preferences, names = sweep("simplex", reward_loras=adapters(3))
    assert len(preferences) == 15
    assert names[:3] == ["w 1 0 0", "w .75 .25 0", "w .75 0 .25"]
    assert names[4] == "w .50 .25 .25"


def test_a_simplex_takes_the_kl_scale_of_the_preference_connected():
    preferences, names = sweep("simplex", preference_start=Preference((1.0,), 1.5), reward_loras=adapters(2))
    assert {p.kl_scale for p in preferences} == {1.5}
    assert names[0] == "w 1 0 kl 1.50"


@patient
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.integers(2, 12),
)
def test_a_line_is_numpys_linspace(first, last, scale_first, scale_last, points):
    start, end = Preference((*first, 0.0), scale_first), Preference((*last, 0.0), scale_last)
    preferences, names = sweep("line", points=points, preference_start=start, preference_end=end)
    a, b = (np.array(values) / np.sum(values) for values in (first, last))
    assert weights(preferences, 3) == pytest.approx(np.linspace(a, b, points), abs=1e-12)
    assert [p.kl_scale for p in preferences] == pytest.approx(np.linspace(scale_first, scale_last, points), abs=1e-8)
    assert len(names) == points


@patient
@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(2, 12))
def test_a_row_of_kl_scales_is_numpys_linspace(first, last, points):
    preferences, _ = sweep("kl scales", points, 4, first, last, preference_start=Preference((1.0, 3.0, 0.0, 0.0), 7.0))
    assert [p.kl_scale for p in preferences] == pytest.approx(np.linspace(first, last, points), abs=1e-8)
    assert {p.weights for p in preferences} == {(1.0, 3.0, 0.0, 0.0)}


def test_a_row_of_kl_scales_of_a_moving_preference():
    moving = PreferenceSchedule(Preference((1.0, 0.0)), Preference((0.0, 1.0)))
    preferences, names = sweep("kl scales", 3, reward_loras=adapters(2), preference_start=moving)
    assert [[part.kl_scale for part in p.parts] for p in preferences] == [[0, 0], [1, 1], [2, 2]]
    assert names == ["kl 0", "kl 1", "kl 2"]


def test_a_row_of_kl_scales_without_a_preference_weighs_all_adapters_equally():
    preferences, names = sweep("kl scales", reward_loras=adapters(3))
    assert {p.normalised(["a", "b", "c"]) for p in preferences} == {(1 / 3, 1 / 3, 1 / 3)}
    assert names == ["kl 0", "kl .50", "kl 1", "kl 1.50", "kl 2"]


@pytest.mark.parametrize("points", range(2, 40))
def test_a_kl_scale_of_one_is_exactly_one(points):
    """Otherwise the sampler would call the base model without need."""
    preferences, _ = sweep("kl scales", 2 * points - 1, 4, 0.3, 1.7, reward_loras=adapters(2))
    assert preferences[points - 1].kl_scale == 1.0


@patient
@given(st.floats(-5, 5))
def test_a_number_reads_back(value):
    text = number(value)
    assert float(text) == pytest.approx(value, abs=5.1e-4)
    assert re.fullmatch(r"-?(\d+|\d*\.\d{2,3})", text)
    assert not re.match(r"-?0\.", text)


def test_no_weight_is_left_out_of_a_label():
    assert labels([Preference((1.0, 1.0, 0.0, 0.0))], 2) == ["w .50 .50"]
    assert labels([Preference((1.0,), 0.5)], 2) == ["w 1 0 kl .50"]
    assert labels([Preference((1.0,), 1.0), Preference((1.0, 1.0), 0.5)], 2) == ["w 1 0 kl 1", "w .50 .50 kl .50"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"kind": "simplex"}, "needs to know the adapters: connect reward_loras"),
        ({"kind": "simplex", "reward_loras": adapters(1)}, "at least 2 adapters and got 1"),
        ({"kind": "simplex", "divisions": 0, "reward_loras": adapters(2)}, "divisions is 0"),
        (
            {"kind": "simplex", "divisions": 20, "reward_loras": adapters(4)},
            f"are {math.comb(23, 3)} points, each a whole run; at most 1000",
        ),
        ({"kind": "line"}, "connect preference_start and preference_end"),
        ({"kind": "line", "preference_start": Preference((1.0,))}, "connect preference_end"),
        ({"kind": "kl scales"}, "needs a mixture: connect preference_start"),
        ({"kind": "kl scales", "points": 1, "reward_loras": adapters(2)}, "points is 1"),
        ({"kind": "kl scales", "preference_start": Preference((0.0, 0.0))}, "All weights of preference_start are 0"),
        (
            {"kind": "line", "preference_start": Preference((1.0,)), "preference_end": Preference((0.0,))},
            "All weights of a preference are 0",
        ),
        (
            {
                "kind": "line",
                "preference_start": Preference((1.0,)),
                "preference_end": Preference((0.0, 0.0, 1.0)),
                "reward_loras": adapters(2),
            },
            "weight_3 is 0.5, but there is no adapter 3",
        ),
        (
            {"kind": "line", "preference_start": PreferenceSchedule(Preference((1.0,)), Preference((1.0,)))},
            "preference_start changes over time or space",
        ),
    ],
)
def test_what_is_missing_is_said(inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(**({"points": 3} | inputs))
