"""The studies' sampler, draws and distances against closed forms and other libraries."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusion_blend.blending.draws import draw
from diffusion_blend.evaluation.gaussian.ancestral import sample, schedule, split
from diffusion_blend.evaluation.gaussian.distance import sliced_wasserstein
from diffusion_blend.evaluation.gaussian.draw_table import draw_table
from diffusion_blend.evaluation.intervals import interval
from scipy import stats

PROBABILITIES = [0.2, 0.5, 0.3]


@pytest.mark.parametrize(("sigma", "following"), [(10.0, 9.0), (1.0, 0.2), (0.5, 0.0)])
def test_a_step_keeps_the_noise_level(sigma, following):
    down, up = split(sigma, following)
    assert down**2 + up**2 == pytest.approx(following**2)
    # eta 1: x_next has the conditional variance of the forward process given x0 and x.
    assert up**2 == pytest.approx(following**2 * (sigma**2 - following**2) / sigma**2)


def gaussian_recursion(mean: float, variance: float, steps: int) -> tuple[float, float]:
    """Mean and variance at the end: for a Gaussian target the denoiser is linear, so each step follows by hand."""
    sigmas = schedule(steps)
    m, v = 0.0, sigmas[0] ** 2
    for sigma, following in itertools.pairwise(sigmas):
        down, up = split(sigma, following)
        gain, pull = variance / (variance + sigma**2), sigma**2 * mean / (variance + sigma**2)
        slope = gain + down / sigma * (1 - gain)
        m, v = slope * m + (1 - down / sigma) * pull, slope**2 * v + up**2
    return m, v


def test_the_sampler_gives_the_gaussian_that_the_recursion_gives():
    mean, variance = 1.5, 0.25

    def denoise(x, sigma, index):
        return (sigma**2 * mean + variance * x) / (variance + sigma**2)

    start = torch.randn((100_000, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = sample(denoise, start, 40, torch.Generator().manual_seed(1))
    m, v = gaussian_recursion(mean, variance, 40)
    assert result.mean().item() == pytest.approx(m, abs=0.005)
    assert result.var().item() == pytest.approx(v, rel=0.02)
    # The remaining error is that of the discretisation, of first order in the step.
    errors = [abs(gaussian_recursion(mean, variance, steps)[1] - variance) for steps in (50, 200, 800)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("kind", ["independent", "stratified"])
def test_tables_have_the_marginals(kind):
    table = draw_table(kind, PROBABILITIES, 12, 20_000, torch.Generator().manual_seed(0))
    for step in (0, 5, 11):
        counts = torch.bincount(table[step], minlength=3).numpy()
        expected = [p * 20_000 for p in PROBABILITIES]
        assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_tables_follow_the_law_of_the_shipped_draws():
    # The joint law of how often each adapter comes up in a run, of both, by a test of equal distributions.
    for kind in ("independent", "stratified"):
        table = draw_table(kind, PROBABILITIES, 7, 1500, torch.Generator().manual_seed(0))
        mine = [tuple(torch.bincount(run, minlength=3).tolist()) for run in table.T]
        shipped = []
        for image in range(1500):
            run = [draw(kind, PROBABILITIES, 3, step, 7, image) for step in range(7)]
            shipped.append(tuple(run.count(category) for category in range(3)))
        seen = sorted(set(mine) | set(shipped))
        counts = [[sample.count(outcome) for outcome in seen] for sample in (mine, shipped)]
        assert stats.chi2_contingency(counts).pvalue > 1e-4
        if kind == "stratified":
            assert all(abs(n - p * 7) < 1 for outcome in seen for n, p in zip(outcome, PROBABILITIES, strict=True))


def test_other_kinds_of_draws_are_refused():
    with pytest.raises(ValueError, match="draws is 'lucky'"):
        draw_table("lucky", PROBABILITIES, 3, 3, torch.Generator())


def test_the_sliced_distance_of_a_shift_is_known():
    points = torch.randn((500, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = points + torch.tensor([0.3, -0.4], dtype=torch.float64)
    # Projected on direction theta a shift of length .5 is .5 cos(theta): its mean square is .25 / 2.
    assert sliced_wasserstein(points, moved) == pytest.approx(0.5 / math.sqrt(2))
    assert sliced_wasserstein(points, points.flip(0)) == 0
    with pytest.raises(ValueError, match="draw as many of each"):
        sliced_wasserstein(points, points[:10])


def test_the_sliced_distance_is_the_mean_of_one_dimensional_ones():
    # Along the axes only: scipy's exact 1-Wasserstein of samples differing by a constant equals the 2-Wasserstein.
    generator = torch.Generator().manual_seed(1)
    points = torch.randn((300, 2), dtype=torch.float64, generator=generator)
    flat = points * torch.tensor([1.0, 0.0], dtype=torch.float64)
    moved = flat + torch.tensor([0.7, 0.0], dtype=torch.float64)
    along = stats.wasserstein_distance(flat[:, 0].numpy(), moved[:, 0].numpy())
    assert sliced_wasserstein(flat, moved) == pytest.approx(along / math.sqrt(2))


def test_the_interval_is_students():
    values = [0.1, 0.4, 0.2, 0.6]
    mean, half = interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(interval([1.0])[1])
