"""What steps keep for later ones, by conditioning however the calls are split."""

import pytest
import torch
from diffusion_blend.blending.plans import Extrapolation
from diffusion_blend.blending.residual_cache import ResidualCache

FADES = Extrapolation(power=3.0, ahead=0.0)


def levels(sigma, count):
    return torch.full((count,), float(sigma))


def number(value):
    return torch.full((1, 1), float(value), dtype=torch.float64)


def test_each_conditioning_gets_its_own_back_scaled_by_the_noise():
    kept, tensor = ResidualCache(), torch.randn(4, 3, 2, 2)
    kept.store(["yes", "no"], tensor, levels(4, 4), 0)
    prediction = torch.randn(2, 3, 2, 2)
    moved = kept.extrapolate(["no"], prediction, levels(2, 2), FADES)
    assert torch.allclose(moved, prediction + tensor[2:] / 8)
    both = kept.extrapolate(["no", "yes"], torch.zeros(4, 3, 2, 2), levels(4, 4), FADES)
    assert torch.equal(both, torch.cat([tensor[2:], tensor[:2]]))


@pytest.mark.parametrize("ahead", [0.0, 0.5, 1.0])
def test_the_last_one_counts_and_its_change_since_the_one_before_is_carried_on(ahead):
    kept = ResidualCache()
    for step, (value, sigma) in enumerate(((100, 16), (1, 8), (2, 4))):  # the first is forgotten
        kept.store(["yes"], number(value), levels(sigma, 1), step)
    moved = kept.extrapolate(["yes"], number(10), levels(2, 1), Extrapolation(power=1.0, ahead=ahead))
    assert moved.item() == pytest.approx(10 + (2 + ahead * (2 - 1 / 2)) / 2)


def test_the_last_evaluation_of_a_step_counts_and_is_no_change():
    kept = ResidualCache()
    for value, sigma in ((1, 8), (2, 4)):
        kept.store(["yes"], number(value), levels(sigma, 1), 3)
    assert kept.extrapolate(["yes"], number(0), levels(2, 1), Extrapolation(power=1.0, ahead=0.5)).item() == 1.0


def test_a_sampler_that_goes_back_starts_anew():
    kept = ResidualCache()
    for step, value, sigma in ((2, 1, 8), (4, 2, 4), (2, 3, 8)):
        kept.store(["yes"], number(value), levels(sigma, 1), step)
    assert kept.extrapolate(["yes"], number(0), levels(4, 1), Extrapolation(power=1.0, ahead=0.5)).item() == 1.5


def test_what_fades_as_it_is_expected_to_has_no_change():
    """Exactly so for every amount of ``ahead``: what is carried on is then the power law itself."""
    kept, first = ResidualCache(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    kept.store(["yes"], first, levels(8, 2), 0)
    kept.store(["yes"], first / 2**2.5, levels(4, 2), 2)
    moved = kept.extrapolate(["yes"], torch.zeros_like(first), levels(1, 2), Extrapolation(power=2.5, ahead=7.0))
    torch.testing.assert_close(moved, first / 8**2.5)


def test_an_unknown_conditioning_or_shape_is_not_moved():
    kept = ResidualCache()
    kept.store(["yes"], torch.ones(1, 3, 2, 2), levels(4, 1), 0)
    prediction = torch.randn(1, 3, 2, 2)
    assert torch.equal(kept.extrapolate(["no"], prediction, levels(2, 1), FADES), prediction)
    other = torch.randn(1, 3, 4, 4)
    assert torch.equal(kept.extrapolate(["yes"], other, levels(2, 1), FADES), other)
    assert kept.covers(["yes"], prediction.shape)
    assert not kept.covers(["yes", "no"], (2, 3, 2, 2))
    assert not kept.covers(["yes"], other.shape)
