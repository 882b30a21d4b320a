"""The simulated people: votes follow their utility, ways of asking find a known best, and a stopped study goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diffusion_blend.evaluation.taste import miniature
from diffusion_blend.evaluation.taste.people import KINDS, KL_RANGE, make_person
from diffusion_blend.evaluation.taste.strategies import STRATEGIES, Asking
from diffusion_blend.evaluation.taste.study import AT, median, regrets, study
from diffusion_blend.preference_learning.space import Region, option_of, points_of
from diffusion_blend.preference_learning.votes import EQUAL, FIRST, SECOND


@pytest.mark.parametrize("kind", KINDS)
def test_a_careful_person_votes_by_utility(kind):
    person = make_person(kind, 3, 0.0, 1)
    rng = np.random.default_rng(0)
    for _ in range(50):
        options = [option_of([*rng.dirichlet(np.ones(3)), rng.uniform(*KL_RANGE)]) for _ in range(2)]
        a, b = person.utility(points_of(options))
        near = abs(a - b) < 0.02 * (person.best - person.worst)
        assert person.vote(*options).outcome == (EQUAL if near else FIRST if a > b else SECOND)
        assert person.regret(options[0]) >= 0


def test_the_best_option_has_no_regret_and_an_average_one_has_1():
    person = make_person("linear", 4, 0.0, 3)
    points = Region(4, *KL_RANGE).lattice()
    best = option_of(points[int(np.argmax(person.utility(points)))])
    assert person.regret(best) == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(9)
    everywhere = np.column_stack([rng.dirichlet(np.ones(4), 20_000), rng.uniform(*KL_RANGE, 20_000)])
    mean = (person.best - person.utility(everywhere).mean()) / (person.best - person.average)
    assert mean == pytest.approx(1, abs=0.05)


def test_a_careless_person_flips_half_of_the_random_votes():
    person = make_person("linear", 2, 1.0, 0)
    pair = Region(2, *KL_RANGE).corners(1.0)
    firsts = sum(person.vote(*pair).outcome == FIRST for _ in range(2000))
    assert firsts == pytest.approx(1000, abs=5 * (2000 * 0.25) ** 0.5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_way_of_asking_stays_in_the_region_and_gets_better(name):
    person = make_person("linear", 3, 0.0, 4)
    asking = Asking(3, np.random.default_rng(0))
    start = person.regret(asking.best)
    pairs = STRATEGIES[name](asking)
    pair = next(pairs)
    for _ in range(20):
        for option in pair:
            assert sum(option.weights) == pytest.approx(1) and KL_RANGE[0] <= option.kl_scale <= KL_RANGE[1]
        asking.votes.append(person.vote(*pair))
        pair = next(pairs)
    assert person.regret(asking.best) < start


def test_ten_duels_beat_random_choice_by_far():
    """Twelve people each; the study in docs/taste.md has 200."""
    for kind in KINDS:
        found = {
            name: np.median([regrets(name, kind, 3, 0.0, number)[1] for number in range(12)])
            for name in ("duels", "random choice")
        }
        assert found["duels"] <= found["random choice"] / 2


def test_a_stopped_study_goes_on_and_ends_in_the_same_table(tmp_path):
    whole = study(tmp_path / "whole", 2, [2])
    study(tmp_path / "parts", 1, [2])
    assert study(tmp_path / "parts", 2, [2]) == whole
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    study(tmp_path / "parts", 2, [2])
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    assert len(whole) == len(KINDS) * 2 * len(STRATEGIES) and all(f"after {at}" in whole[0] for at in AT)


def test_the_interval_of_a_median_holds_it():
    values = np.random.default_rng(1).normal(size=200)
    middle, low, high = median(values)
    assert low < middle < high and middle == np.median(values)


def test_a_mix_of_rewards_with_one_peak_is_found(tmp_path):
    """Rewards by formula in place of pictures: each is largest at its adapter's corner and at KL scale 1."""
    points = miniature.lattice()
    noise = np.random.default_rng(0).normal(scale=0.5, size=(1, 16, 3))  # the same for every preference
    mean = points[:, :-1] - (points[:, -1:] - 1) ** 2
    for number, values in enumerate(mean[:, None] + noise):
        (tmp_path / f"rewards_{number}.json").write_text(json.dumps(values.tolist()))
    lost = miniature.find(miniature.measure(tmp_path), 6)
    assert np.median(lost) < 0.2
