"""The analytic study where the answer is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusion_blend.evaluation.gaussian import exact_study
from diffusion_blend.evaluation.gaussian.exact_world import World, control, mean_reward_gradient, variation
from diffusion_blend.evaluation.gaussian.mixture import GaussianMixture, ring, weighted_reward


def single() -> GaussianMixture:
    """One Gaussian: with linear rewards every control is linear in the reward, so the blend has no Jensen gap."""
    covariance = torch.tensor([[0.6, 0.2], [0.2, 0.5]], dtype=torch.float64)
    return GaussianMixture(
        torch.zeros(1, dtype=torch.float64), torch.tensor([[0.3, -0.2]], dtype=torch.float64), covariance[None]
    )


def test_on_one_gaussian_with_linear_rewards_the_blend_is_the_exact_solution():
    world = World(single(), exact_study.pick(("right", "up")), 0.7)
    rows = exact_study.drift_errors(world, [0.3, 0.7], seed=0, count=500)
    assert max(row["blend"] for row in rows) < 1e-9
    assert max(row["jensen"] for row in rows) < 1e-9
    # L_t2 is that of a log-normal, sqrt(exp(s^2) - 1), s^2 the posterior variance of r / alpha: not 0, so the lemma is loose.
    b = torch.tensor([0.3, 0.7], dtype=torch.float64) / 0.7
    for row in rows:
        identity = torch.eye(2, dtype=torch.float64)
        posterior = torch.linalg.inv(torch.linalg.inv(single().covariances[0]) + identity / row["sigma"] ** 2)
        assert row["variation"] == pytest.approx(math.sqrt(math.expm1(float(b @ posterior @ b))), rel=1e-6)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.5, 2.0])
def test_on_one_gaussian_the_kl_scale_is_exact(scale):
    world = World(single(), exact_study.pick(("right",)), 0.7)
    x = torch.randn((50, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blended = world.blend([1.0], scale, steps=10)(x, 0.8, 3)
    torch.testing.assert_close(blended, world.exact([1.0], scale).denoised(x, 0.8))


def test_on_the_ring_it_is_not_exact_and_gets_worse_with_the_tilt():
    gaps = []
    for alpha in (4.0, 1.0, 0.25):
        world = World(ring(), exact_study.pick(("right", "up")), alpha)
        gaps.append(max(row["blend"] for row in exact_study.drift_errors(world, [0.5, 0.5], seed=0, count=500)))
    assert 0.01 < gaps[0] < gaps[1] < gaps[2]


def test_control_and_its_exchange_by_monte_carlo():
    # E[exp(r/alpha) | x] and E[r/alpha | x] by sampling the posterior; derivatives by central differences.
    base, reward, alpha, sigma = ring(), weighted_reward(exact_study.pick(("right", "centre")), [0.5, 0.5]), 1.0, 1.2
    x = torch.tensor([[0.4, 0.9]], dtype=torch.float64)

    def moments(point: torch.Tensor) -> tuple[float, float, float]:
        posterior = base.posterior(point, sigma)
        flat = GaussianMixture(posterior.log_weights[0], posterior.means[0], posterior.covariances)
        values = reward(flat.sample(400_000, torch.Generator().manual_seed(0))) / alpha
        weights = values.exp()
        return float(weights.mean().log()), float(values.mean()), float(weights.std() / weights.mean())

    step = 0.2
    for axis in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[axis]
        up, down = moments(x + shift), moments(x - shift)
        tilted = base.tilted(reward, alpha)
        assert control(tilted, base, x, sigma)[0, axis].item() == pytest.approx(
            (up[0] - down[0]) / (2 * step), abs=0.02
        )
        exchanged = mean_reward_gradient(base, reward, alpha, x, sigma)[0, axis].item()
        assert exchanged == pytest.approx((up[1] - down[1]) / (2 * step), abs=0.02)
    assert variation(base, reward, alpha, x, sigma).item() == pytest.approx(moments(x)[2], rel=0.02)


def test_stochastic_with_one_certain_adapter_is_that_adapter():
    world = World(ring(), exact_study.pick(("right", "up")), 1.0)
    x = torch.randn((40, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = world.stochastic([0.0, 1.0], 1.0, 10, "independent", 40, torch.Generator())
    torch.testing.assert_close(drawn(x, 0.5, 2), world.adapters()[1].denoised(x, 0.5))
    with_base = world.stochastic([0.5, 0.5], 0.0, 10, "stratified", 40, torch.Generator())
    torch.testing.assert_close(with_base(x, 0.5, 2), world.base.denoised(x, 0.5))


def test_the_weak_error_falls_with_the_steps():
    rows = exact_study.weak_error(seed=0, count=4000, repeats=3, steps=(4, 32))
    for kind in ("independent", "stratified"):
        coarse, fine = (row for row in rows if row["draws"] == kind)
        assert fine["error"] < coarse["error"] / 3
        assert fine["pathwise"] < coarse["pathwise"]


def test_the_unbiased_error_takes_the_noise_off():
    generator = torch.Generator().manual_seed(0)
    pure = torch.randn((2000, 6), generator=generator)
    error, noise = exact_study._unbiased(pure + 0.5)
    assert error == pytest.approx(0.5, abs=0.02) and noise == pytest.approx(1 / math.sqrt(2000), rel=0.05)
    # Few repeats of zero-mean noise: the plain root mean square would be about 0.7.
    few = [exact_study._unbiased(torch.randn((2, 6), generator=generator))[0] ** 2 for _ in range(300)]
    assert sum(few) / len(few) < 0.35
