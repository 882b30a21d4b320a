"""The residual cache: residuals are stored per conditioning, for every split of the conditionings into calls."""

import pytest
import torch
from diffusion_blend.blending.plans import Extrapolation
from diffusion_blend.blending.residual_cache import ResidualCache

DECAY = Extrapolation(power=3.0, ahead=0.0)


def levels(sigma, count):
    return torch.full((count,), float(sigma))


def number(value):
    return torch.full((1, 1), float(value), dtype=torch.float64)


def test_each_conditioning_gets_its_own_back_scaled_by_the_noise():
    cache, tensor = ResidualCache(), torch.randn(4, 3, 2, 2)
    cache.store(["yes", "no"], tensor, levels(4, 4), 0)
    prediction = torch.randn(2, 3, 2, 2)
    extrapolated = cache.extrapolate(["no"], prediction, levels(2, 2), DECAY)
    assert torch.allclose(extrapolated, prediction + tensor[2:] / 8)
    both = cache.extrapolate(["no", "yes"], torch.zeros(4, 3, 2, 2), levels(4, 4), DECAY)
    assert torch.equal(both, torch.cat([tensor[2:], tensor[:2]]))


@pytest.mark.parametrize("ahead", [0.0, 0.5, 1.0])
def test_the_last_one_counts_and_its_change_since_the_one_before_is_carried_on(ahead):
    cache = ResidualCache()
    for step, (value, sigma) in enumerate(((100, 16), (1, 8), (2, 4))):  # the first residual is dropped
        cache.store(["yes"], number(value), levels(sigma, 1), step)
    extrapolated = cache.extrapolate(["yes"], number(10), levels(2, 1), Extrapolation(power=1.0, ahead=ahead))
    assert extrapolated.item() == pytest.approx(10 + (2 + ahead * (2 - 1 / 2)) / 2)


def test_the_last_evaluation_of_a_step_counts_and_is_no_change():
    cache = ResidualCache()
    for value, sigma in ((1, 8), (2, 4)):
        cache.store(["yes"], number(value), levels(sigma, 1), 3)
    assert cache.extrapolate(["yes"], number(0), levels(2, 1), Extrapolation(power=1.0, ahead=0.5)).item() == 1.0


def test_a_sampler_that_goes_back_starts_anew():
    cache = ResidualCache()
    for step, value, sigma in ((2, 1, 8), (4, 2, 4), (2, 3, 8)):
        cache.store(["yes"], number(value), levels(sigma, 1), step)
    assert cache.extrapolate(["yes"], number(0), levels(4, 1), Extrapolation(power=1.0, ahead=0.5)).item() == 1.5


def test_ahead_has_no_effect_on_a_residual_that_follows_the_power_law():
    """A residual that decays exactly as the power law has no further change, so ``ahead`` has no effect."""
    cache, first = ResidualCache(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    cache.store(["yes"], first, levels(8, 2), 0)
    cache.store(["yes"], first / 2**2.5, levels(4, 2), 2)
    extrapolated = cache.extrapolate(
        ["yes"], torch.zeros_like(first), levels(1, 2), Extrapolation(power=2.5, ahead=7.0)
    )
    torch.testing.assert_close(extrapolated, first / 8**2.5)


def test_an_unknown_conditioning_or_shape_is_not_moved():
    cache = ResidualCache()
    cache.store(["yes"], torch.ones(1, 3, 2, 2), levels(4, 1), 0)
    prediction = torch.randn(1, 3, 2, 2)
    assert torch.equal(cache.extrapolate(["no"], prediction, levels(2, 1), DECAY), prediction)
    other = torch.randn(1, 3, 4, 4)
    assert torch.equal(cache.extrapolate(["yes"], other, levels(2, 1), DECAY), other)
    assert cache.covers(["yes"], prediction.shape)
    assert not cache.covers(["yes", "no"], (2, 3, 2, 2))
    assert not cache.covers(["yes"], other.shape)
