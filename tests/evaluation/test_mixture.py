"""The analytic world against autograd, quadrature and Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.evaluation.gaussian.mixture import (
    GaussianMixture,
    QuadraticReward,
    ring,
    ring_rewards,
    weighted_reward,
)


def uneven() -> GaussianMixture:
    """Three Gaussians of different weights and shapes."""
    means = torch.tensor([[0.0, 1.0], [1.5, -0.5], [-1.0, -1.0]], dtype=torch.float64)
    roots = torch.tensor(
        [[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [-0.1, 0.6]], [[0.4, 0.0], [0.0, 0.3]]], dtype=torch.float64
    )
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log(), means, roots @ roots.mT)


def grid(half: float = 7.0, count: int = 400) -> tuple[torch.Tensor, float]:
    """Points of a square lattice, and the area of each."""
    axis = torch.linspace(-half, half, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * half / (count - 1)) ** 2


POINTS = torch.randn((64, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2


def test_the_density_is_that_of_torch_distributions():
    mixture = uneven()
    parts = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=mixture.log_weights), parts)
    torch.testing.assert_close(mixture.log_density(POINTS), expected.log_prob(POINTS))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 8.0])
def test_the_denoiser_is_the_score(sigma):
    # Tweedie: D(x) = x + sigma^2 grad log p_sigma(x), with the gradient by autograd.
    x = POINTS.clone().requires_grad_(True)
    score = torch.autograd.grad(uneven().diffused(sigma).log_density(x).sum(), x)[0]
    torch.testing.assert_close(uneven().denoised(POINTS, sigma), POINTS + sigma**2 * score)
    posterior = uneven().posterior(POINTS, sigma)
    mean = (posterior.log_weights.exp()[..., None] * posterior.means).sum(-2)
    torch.testing.assert_close(mean, uneven().denoised(POINTS, sigma))


@pytest.mark.parametrize("reward", ring_rewards(), ids=lambda reward: reward.name)
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_a_tilt_multiplies_the_density(reward, alpha):
    base = uneven()
    tilted = base.tilted(reward, alpha)
    # log q - log p - r / alpha is the same everywhere: minus the log normaliser.
    constant = tilted.log_density(POINTS) - base.log_density(POINTS) - reward(POINTS) / alpha
    torch.testing.assert_close(constant, -base.log_expectation(reward, alpha).expand(64))
    points, area = grid()
    weight = (base.log_density(points) + reward(points) / alpha).exp() * area
    torch.testing.assert_close(weight.sum().log(), base.log_expectation(reward, alpha), atol=1e-6, rtol=0)
    mean = (weight * reward(points)).sum() / weight.sum()
    torch.testing.assert_close(mean, tilted.mean_reward(reward), atol=1e-6, rtol=1e-6)


def test_tilting_by_parts_is_tilting_by_the_sum():
    first, second = ring_rewards()[0], ring_rewards()[2]
    together = uneven().tilted(weighted_reward([first, second], [0.3, 0.7]), 0.5)
    apart = uneven().tilted(first, 0.5 / 0.3).tilted(second, 0.5 / 0.7)
    torch.testing.assert_close(together.log_density(POINTS), apart.log_density(POINTS))


def test_samples_have_the_moments():
    mixture = uneven()
    sample = mixture.sample(200_000, torch.Generator().manual_seed(1))
    weights = mixture.log_weights.exp()
    mean = weights @ mixture.means
    torch.testing.assert_close(sample.mean(0), mean, atol=0.01, rtol=0)
    second = (
        weights[:, None, None] * (mixture.covariances + mixture.means[:, :, None] * mixture.means[:, None, :])
    ).sum(0)
    torch.testing.assert_close(sample.T @ sample / len(sample), second, atol=0.02, rtol=0)


def test_a_tilt_without_a_normaliser_is_refused():
    outwards = QuadraticReward("outwards", torch.zeros(2, dtype=torch.float64), -torch.eye(2, dtype=torch.float64))
    assert ring().tilted(outwards, 1.0).mean_reward(outwards) > ring().mean_reward(outwards)
    with pytest.raises(ValueError, match=r"exp\(outwards / 0.01\) grows faster.*larger alpha"):
        ring().tilted(outwards, 0.01)
