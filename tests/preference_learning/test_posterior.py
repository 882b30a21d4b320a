"""Laws of what votes say, against quadrature and weighted draws from the prior."""

from __future__ import annotations

import numpy as np
import pytest
from diffusion_blend.preference_learning.kernels import KERNELS, gaussian_process, prior_mean
from diffusion_blend.preference_learning.posterior import CARELESS, TIES, Posterior
from diffusion_blend.preference_learning.search import Search, expected_best
from diffusion_blend.preference_learning.space import Region, option_of, points_of
from diffusion_blend.preference_learning.votes import BAD, EQUAL, FIRST, SECOND, Narrowing, Option, Vote
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C = Option((1.0, 0.0, 0.0)), Option((0.0, 1.0, 0.0)), Option((0.2, 0.3, 0.5), 1.2)


def random_votes(seed, adapters=3, count=8):
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.dirichlet(np.ones(adapters), 2 * count), rng.uniform(0.5, 1.5, 2 * count)])
    options = [option_of(point) for point in points]
    outcomes = rng.choice([FIRST, FIRST, SECOND, EQUAL, BAD], count)
    return [Vote(a, b, str(o)) for a, b, o in zip(options[::2], options[1::2], outcomes, strict=True)]


def permuted(option, order):
    return Option(tuple(option.weights[i] for i in order), option.kl_scale)


seeds = st.integers(0, 10_000)
quick = settings(deadline=None, max_examples=40)


@quick
@given(seeds, st.permutations(range(4)))
def test_permuting_the_adapters_permutes_the_result(seed, order):
    votes = random_votes(seed, 4)
    other = [Vote(permuted(vote.first, order), permuted(vote.second, order), vote.outcome) for vote in votes]
    points = points_of([vote.first for vote in random_votes(seed + 1, 4)])
    moved = np.column_stack([points[:, order], points[:, -1]])
    assert Posterior(other).mean(moved) == pytest.approx(Posterior(votes).mean(points), abs=1e-6)
    assert Posterior(other).covariance(moved) == pytest.approx(Posterior(votes).covariance(points), abs=1e-6)


@quick
@given(seeds, st.permutations(range(8)))
def test_the_order_of_the_votes_does_not_matter(seed, order):
    votes = random_votes(seed)
    points = points_of([A, B, C])
    shuffled = Posterior([votes[i] for i in order])
    assert shuffled.mean(points) == pytest.approx(Posterior(votes).mean(points), abs=1e-6)


@quick
@given(seeds)
def test_turning_a_pair_round_changes_nothing(seed):
    votes = random_votes(seed)
    turn = {FIRST: SECOND, SECOND: FIRST, EQUAL: EQUAL, BAD: BAD}
    turned = [Vote(vote.second, vote.first, turn[vote.outcome]) for vote in votes]
    assert Posterior(turned).mean(points_of([C])) == pytest.approx(Posterior(votes).mean(points_of([C])), abs=1e-6)


@quick
@given(seeds, st.integers(1, 6))
def test_equal_votes_about_options_that_count_as_equal_change_nothing(seed, times):
    """At a difference of 0 a tie pulls nowhere: any option and itself, and two corners that no vote tells apart."""
    votes = random_votes(seed)
    points = points_of([A, B, C])
    more = [*votes, *[Vote(C, C, EQUAL)] * times]
    assert Posterior(more).mean(points) == pytest.approx(Posterior(votes).mean(points), abs=1e-6)
    corners = [Vote(A, B, EQUAL)] * times
    assert Posterior(corners).mean(points) == pytest.approx(prior_mean(points), abs=1e-6)


@quick
@given(seeds, st.integers(0, 7), st.integers(1, 4))
def test_repeating_a_vote_only_sharpens_it(seed, which, times):
    votes = random_votes(seed)
    vote = votes[which]
    ends = points_of([vote.first, vote.second])

    def lead(votes):
        first, second = Posterior(votes).mean(ends)
        return {FIRST: first - second, SECOND: second - first, EQUAL: -abs(first - second), BAD: -first - second}[
            vote.outcome
        ]

    assert lead(votes + [vote] * times) >= lead(votes) - 1e-6


def test_contradictions_end_in_a_draw_and_more_votes_never_break_it():
    points = points_of([A, B])
    both = [Vote(A, B, FIRST), Vote(A, B, SECOND)] * 50
    first, second = Posterior(both).mean(points)
    assert first == pytest.approx(second, abs=1e-6)
    assert np.isfinite(Posterior([Vote(A, B, FIRST)] * 500).covariance(points)).all()


def test_both_bad_lowers_both_and_favours_neither():
    points = points_of([A, B])
    before, after = Posterior([]).mean(points), Posterior([Vote(A, B, BAD)]).mean(points)
    assert (after < before).all()
    assert after[0] == pytest.approx(after[1], abs=1e-6)


def chance(vote, a, b):
    """The likelihood of a vote at utilities a and b, written out."""
    if vote.outcome == BAD:
        return np.prod([(1 - CARELESS) / (1 + np.exp(f)) + CARELESS / 2 for f in (a, b)], axis=0)
    parts = {FIRST: np.exp((a - b) / 2), SECOND: np.exp((b - a) / 2), EQUAL: TIES}
    careful = parts[vote.outcome] / (parts[FIRST] + parts[SECOND] + TIES)
    return careful if vote.outcome == EQUAL else (1 - CARELESS) * careful + CARELESS / 2


@pytest.mark.parametrize("outcome", [FIRST, SECOND, EQUAL])
def test_one_vote_is_exact_by_quadrature(outcome):
    """The difference has the moments of its prior times the likelihood, on a fine grid."""
    vote, points = Vote(A, B, outcome), points_of([A, B])
    prior = gaussian_process(points, points)
    z, spread = np.linspace(-40, 40, 200_001), np.sqrt(prior[0, 0] + prior[1, 1] - 2 * prior[0, 1])
    density = np.exp(-((z / spread) ** 2) / 2) * chance(vote, z, 0 * z)  # equal prior means
    mean = (density * z).sum() / density.sum()
    posterior = Posterior([vote])
    assert float(np.subtract(*posterior.mean(points))) == pytest.approx(mean, abs=2e-3)
    covariance = posterior.covariance(points)
    found = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert found == pytest.approx((density * (z - mean) ** 2).sum() / density.sum(), rel=5e-3)
    assert np.diag(covariance) == pytest.approx(posterior.variance(points))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
@pytest.mark.parametrize("seed", [3, 4])
def test_the_moments_are_those_of_weighted_draws_from_the_prior(kernel, seed):
    votes = random_votes(seed, count=5)
    options = list(dict.fromkeys(option for vote in votes for option in (vote.first, vote.second)))
    points = points_of(options)
    values, vectors = np.linalg.eigh(kernel(points, points))
    noise = np.random.default_rng(seed).standard_normal((len(points), 400_000))
    drawn = prior_mean(points)[:, None] + vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * noise)
    chances = [chance(vote, drawn[options.index(vote.first)], drawn[options.index(vote.second)]) for vote in votes]
    weights = np.prod(chances, axis=0)
    weights /= weights.sum()
    mean = drawn @ weights
    spread = np.sqrt(np.square(drawn - mean[:, None]) @ weights)
    posterior = Posterior(votes, kernel)
    assert posterior.mean(points) == pytest.approx(mean, abs=0.15 * spread.max())
    assert np.sqrt(posterior.variance(points)) == pytest.approx(spread, rel=0.15)


def test_one_slip_against_many_votes_hardly_counts():
    """Twelve votes put A before B by way of C. A vote of B over A moves them less than a single one moves the prior."""
    points = points_of([A, B])
    many = [Vote(A, C, FIRST), Vote(C, B, FIRST), Vote(A, B, FIRST)] * 4

    def lead(votes):
        return float(np.subtract(*Posterior(votes).mean(points)))

    assert 0 < lead(many) - lead([*many, Vote(A, B, SECOND)]) < 0.5 * (lead([]) - lead([Vote(A, B, SECOND)]))


def test_the_expected_best_of_two_is_clarks_formula():
    rng = np.random.default_rng(0)
    mean, covariance = np.array([0.3, -0.2]), np.array([[1.0, 0.4], [0.4, 0.5]])
    draws = rng.multivariate_normal(mean, covariance, 400_000).max(axis=1)
    assert expected_best(mean, covariance)[0, 1] == pytest.approx(draws.mean(), abs=5 * draws.std() / 400_000**0.5)


@quick
@given(seeds, st.integers(2, 8))
def test_proposed_options_are_in_the_region_and_new(seed, adapters):
    search = Search(adapters, 0.5, 1.5)
    votes = random_votes(seed, adapters, 5)
    for entries in ([], votes, [*votes, Narrowing(votes[0].first, 0.3)]):
        pair = search.next_pair(entries)
        assert pair[0] != pair[1]
        assert {frozenset(pair)}.isdisjoint(frozenset((vote.first, vote.second)) for vote in votes)
        for option in (*pair, search.best(entries)):
            assert sum(option.weights) == pytest.approx(1) and min(option.weights) >= 0
            assert 0.495 <= option.kl_scale <= 1.505
    centre = np.array(votes[0].first.weights)
    near = np.abs(points_of(search.next_pair([*votes, Narrowing(votes[0].first, 0.3)]))[:, :-1] - centre)
    assert near.max() <= 0.3 + 0.011


def test_a_vote_on_a_picture_outside_the_kl_range_is_not_shown_again():
    """Pictures that were made before, with any KL scale, may be voted on."""
    far = Option((0.2, 0.3, 0.5), 3.0)
    votes = [*random_votes(2), *[Vote(far, other, FIRST) for other in (A, B, C)] * 3]
    search = Search(3, 0.5, 1.5)
    for option in (*search.next_pair(votes), search.best(votes)):
        assert 0.5 <= option.kl_scale <= 1.5


def test_a_range_between_hundredths_shows_every_adapter_once():
    search, entries = Search(3, 1.005, 1.504), []
    for _ in range(4):
        entries.append(Vote(*search.next_pair(entries), FIRST))
    assert len({frozenset((vote.first, vote.second)) for vote in entries}) == 4


@pytest.mark.parametrize("adapters", [2, 3, 4, 5, 8])
def test_every_adapter_alone_is_shown_first(adapters):
    entries = []
    for _ in range((adapters + 1) // 2):
        entries.append(Vote(*Search(adapters).next_pair(entries), FIRST))
    shown = {option for vote in entries for option in (vote.first, vote.second)}
    assert set(Region(adapters, 0.5, 1.5).corners(1.0)) <= shown


def test_without_a_vote_that_prefers_anything_the_best_is_the_start():
    start = Option((0.2, 0.3, 0.5), 1.1)
    assert Search(3, start=start).best([]) == start
    assert Search(3).best([]) == Option((0.34, 0.33, 0.33), 1.0)


def test_the_same_votes_give_the_same_pair():
    votes = random_votes(5)
    assert Search(3).next_pair(votes) == Search(3).next_pair(list(votes))
