"""Path weights against closed forms: the weighted blend of Gaussian chains is their exact geometric mean."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusion_blend.blending.path_weights import (
    Particles,
    disagreement,
    draw_one,
    effective_share,
    log_weight_change,
    resample,
)
from hypothesis import given
from hypothesis import strategies as st

MIXES = [(0.5, 0.5), (0.2, 0.3, 0.5), (0.9, 0.8, -0.7), (2.0, -1.0)]
"""Of equal and unequal weights, with a base, and at KL scales above 1."""


def geometric_mean_of_chains(firsts, slopes, offsets, s1, s0, mix):
    """Mean and variance of x0 under ``prod_i [N(x1; m_i, s1^2) N(x0; a_i x1 + b_i, s0^2)]^c_i``, by its precision matrix."""
    precision, pull = np.zeros((2, 2)), np.zeros(2)  # of (x1, x0)
    for c, m, a, b in zip(mix, firsts, slopes, offsets, strict=True):
        row = np.array([-a, 1.0]) / s0
        precision += c * (np.outer(row, row) + np.diag([1 / s1**2, 0.0]))
        pull += c * (row * b / s0 + np.array([m / s1**2, 0.0]))
    covariance = np.linalg.inv(precision)
    return (covariance @ pull)[1], covariance[1, 1]


@pytest.mark.parametrize("mix", MIXES)
def test_weighted_chains_of_the_blend_are_the_geometric_mean_of_the_chains(mix):
    """By quadrature over the first step, so no sampling error is left."""
    n, s1, s0 = len(mix), 0.7, 0.9
    firsts, slopes, offsets = [0.4, -0.8, 1.1][:n], [0.9, 0.6, 0.75][:n], [0.1, -0.3, 0.5][:n]
    nodes, shares = np.polynomial.hermite_e.hermegauss(80)
    first_means = [torch.tensor([[m]], dtype=torch.double) for m in firsts]
    x1 = torch.tensor(sum(c * m for c, m in zip(mix, firsts, strict=True)) + s1 * nodes)
    constant = log_weight_change(first_means, mix, s1)
    means = [a * x1[:, None] + b for a, b in zip(slopes, offsets, strict=True)]
    log_weights = constant + log_weight_change(means, mix, s0)
    weights = torch.tensor(shares) * (log_weights - log_weights.max()).exp()
    weights = weights / weights.sum()
    blended = sum(c * mean[:, 0] for c, mean in zip(mix, means, strict=True))
    mean = float((weights * blended).sum())
    variance = s0**2 + float((weights * (blended - mean) ** 2).sum())
    assert (mean, variance) == pytest.approx(geometric_mean_of_chains(firsts, slopes, offsets, s1, s0, mix), rel=1e-9)


@pytest.mark.parametrize("mix", [(0.5, 0.5), (0.8, 0.7, -0.5)])
def test_a_weighted_diffusion_of_gaussians_ends_at_their_geometric_mean(mix):
    """Whole runs with exact scores: the plain blend ends elsewhere, by ten standard errors."""
    means, variances = [1.0, -0.5, 0.2][: len(mix)], [0.3, 1.5, 0.8][: len(mix)]
    precision = sum(c / v for c, v in zip(mix, variances, strict=True))
    expected = sum(c * m / v for c, m, v in zip(mix, means, variances, strict=True)) / precision, 1 / precision
    generator = torch.Generator().manual_seed(4)
    count, levels = 30_000, torch.logspace(1.3, -2, 601, dtype=torch.double).tolist()
    # The noised models differ little at the first level, so their geometric mean is Gaussian in closed form there.
    noised = [v + levels[0] ** 2 for v in variances]
    start = sum(c / v for c, v in zip(mix, noised, strict=True))
    middle = sum(c * m / v for c, m, v in zip(mix, means, noised, strict=True)) / start
    x = middle + start**-0.5 * torch.randn((count, 1), generator=generator, dtype=torch.double)
    log_weights = torch.zeros(count, dtype=torch.double)
    for sigma, following in itertools.pairwise(levels):
        up = following * math.sqrt(1 - (following / sigma) ** 2)
        ratio = math.sqrt(following**2 - up**2) / sigma
        denoised = [(m * sigma**2 + x * v) / (v + sigma**2) for m, v in zip(means, variances, strict=True)]
        steps = [d + ratio * (x - d) for d in denoised]
        log_weights += log_weight_change(steps, mix, up)
        blended = sum(c * step for c, step in zip(mix, steps, strict=True))
        x = blended + up * torch.randn(x.shape, generator=generator, dtype=torch.double)
    weights = log_weights.softmax(0)
    mean = float((weights * x[:, 0]).sum())
    variance = float((weights * (x[:, 0] - mean) ** 2).sum())
    error = expected[1] ** 0.5 / math.sqrt(count * float(effective_share(log_weights)))
    assert abs(mean - expected[0]) < 4 * error + 0.01
    assert variance == pytest.approx(expected[1], rel=0.04)
    assert abs(float(x.mean()) - expected[0]) > 10 * error
    assert abs(float(x.var()) / expected[1] - 1) > 0.08


@given(st.permutations(range(4)))
def test_the_order_of_the_models_does_not_matter(order):
    generator = torch.Generator().manual_seed(1)
    means = [torch.randn((3, 2, 4), generator=generator) for _ in range(4)]
    mix = [0.6, 0.3, -0.4, 0.5]
    change = log_weight_change(means, mix, 0.5)
    moved = log_weight_change([means[i] for i in order], [mix[i] for i in order], 0.5)
    assert torch.allclose(change, moved, rtol=1e-5)


def test_steps_without_noise_carry_no_weight_and_leave_the_means_alone():
    means = [torch.zeros(2, 3), torch.ones(2, 3)]
    assert log_weight_change(means, (0.5, 0.5), 0.0).tolist() == [0, 0]
    assert log_weight_change(means, (0.5, 0.5), 2.0).tolist() == pytest.approx([-3 / 32, -3 / 32])
    assert [float(mean.sum()) for mean in means] == [0, 6]


def test_one_model_and_equal_predictions_carry_no_weight():
    mean = torch.randn((2, 5), generator=torch.Generator().manual_seed(0))
    assert log_weight_change([mean], (1.0,), 0.1).tolist() == [0, 0]
    assert log_weight_change([mean, mean.clone()], (1.5, -0.5), 0.1).abs().max() < 1e-8


@pytest.mark.parametrize("mix", MIXES)
def test_disagreement_is_the_mean_of_squares_less_the_square_of_the_mean(mix):
    generator = torch.Generator().manual_seed(2)
    points = [torch.randn((4, 6), generator=generator, dtype=torch.double) for _ in mix]
    square = sum(c * (p**2).sum(1) for c, p in zip(mix, points, strict=True))
    mean = torch.stack([c * p for c, p in zip(mix, points, strict=True)]).sum(0)
    assert torch.allclose(disagreement(points, mix), square - (mean**2).sum(1))


@pytest.mark.parametrize(
    ("mix", "deviation", "message"),
    [
        ((0.5,), 1.0, "give as many of each"),
        ((0.5, 0.4), 1.0, "must sum to 1"),
        ((0.5, 0.5), -1.0, "at least 0"),
        ((0.5, 0.5), math.nan, "at least 0"),
    ],
)
def test_wrong_arguments_are_refused(mix, deviation, message):
    with pytest.raises(ValueError, match=message):
        log_weight_change([torch.zeros(1, 1), torch.zeros(1, 1)], mix, deviation)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_effective_share_is_one_for_equal_weights_and_one_nth_for_one(count):
    assert float(effective_share(torch.full((count,), 700.0))) == pytest.approx(1)
    alone = torch.full((count,), -900.0)
    alone[0] = 0.0
    assert float(effective_share(alone)) == pytest.approx(1 / count)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_each_sample_is_chosen_in_proportion_to_its_weight(log_weights, uniform):
    weights = torch.tensor([log_weights], dtype=torch.double)
    chosen = resample(weights, torch.tensor([uniform]))
    count = len(log_weights)
    expected = count * weights.softmax(-1)[0]
    times = torch.bincount(chosen[0], minlength=count)
    assert bool(((times > expected - 1 - 1e-6) & (times < expected + 1 + 1e-6)).all())
    assert torch.equal(chosen, chosen.sort().values)


def test_the_mean_of_the_choices_over_all_uniform_numbers_is_the_weight():
    weights = torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=torch.double).log()
    grid = (torch.arange(2000, dtype=torch.double) + 0.5) / 2000
    rows = weights.expand(2000, 4)
    times = torch.bincount(resample(rows, grid).flatten(), minlength=4) / 2000
    assert times.tolist() == pytest.approx([2.0, 0.8, 1.2, 0.0], abs=2e-3)
    ones = torch.bincount(draw_one(rows, grid), minlength=4) / 2000
    assert ones.tolist() == pytest.approx([0.5, 0.2, 0.3, 0.0], abs=2e-3)


@given(st.integers(1, 64), st.floats(0, 1, exclude_max=True))
def test_equal_weights_choose_every_sample_once(count, uniform):
    chosen = resample(torch.full((1, count), -3.0), torch.tensor([uniform], dtype=torch.double))
    assert chosen[0].tolist() == list(range(count))


def test_only_groups_with_unequal_weights_are_resampled():
    particles = Particles(2, 4, 0.5)
    chosen = particles.advance(torch.tensor([[0.0, 0, 0, 0], [9.0, 0, 0, 0]]), torch.tensor([0.5, 0.5]))
    assert chosen is not None
    assert chosen.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert particles.log_weights.tolist() == [[0.0] * 4] * 2
    assert particles.resamplings == 1
    assert particles.advance(torch.zeros(2, 4), torch.zeros(2)) is None


@pytest.mark.parametrize(("count", "below", "message"), [(0, 0.5, "particles is 0"), (4, 1.5, "resample_below is 1.5")])
def test_impossible_particles_are_refused(count, below, message):
    with pytest.raises(ValueError, match=message):
        Particles(1, count, below)
