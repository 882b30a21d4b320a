"""The learned study's parts: training and the shipped side path are the same function; methods that must agree do."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.blending.adapters import LowRank
from diffusion_blend.evaluation.gaussian import learned_study as learned
from diffusion_blend.evaluation.gaussian import networks
from diffusion_blend.evaluation.gaussian.mixture import ring


def adapter(seed: int) -> dict[str, list[LowRank]]:
    generator = torch.Generator().manual_seed(seed)
    base = networks.Denoiser()
    return {
        f"layers.{i}": [
            LowRank(
                torch.randn((networks.RANK, layer.in_features), generator=generator) / layer.in_features**0.5,
                torch.randn((layer.out_features, networks.RANK), generator=generator) / 10,
            )
        ]
        for i, layer in enumerate(base.layers)
    }


@pytest.fixture(scope="module")
def base():
    return networks.train_base(ring(), seed=0, steps=20, batch=64)


def test_training_and_sampling_see_the_same_adapted_network(base):
    adapters = [adapter(1), adapter(2)]
    x, sigma = torch.randn(2, 30, 2), torch.full((2, 30), 0.7)
    factors = {
        name: (
            torch.stack([a[name][0].down for a in adapters]),
            torch.stack([a[name][0].up for a in adapters]),
        )
        for name in adapters[0]
    }
    side_by_side = networks.precondition(lambda h: networks._side_by_side(base, factors, h), x, sigma)
    model = learned.Adapted(base, adapters)
    with model.installed():
        for m in range(2):
            torch.testing.assert_close(model.predict(model.unit(m), x[m], 0.7), side_by_side[m])
        plain = model.predict((0.0, 0.0), x[0], 0.7)
    torch.testing.assert_close(plain, base(x[0], sigma[0]))
    assert not torch.allclose(plain, side_by_side[0], atol=1e-2)


def test_the_preconditioning_leaves_clean_points_alone(base):
    x = torch.randn(20, 2)
    torch.testing.assert_close(base(x, torch.full((20,), 1e-4)), x, atol=1e-3, rtol=0)


def test_a_trained_denoiser_approaches_the_true_one():
    truth = ring(modes=1)
    x = truth.diffused(1.0).sample(500, torch.Generator().manual_seed(1))
    exact = truth.denoised(x, 1.0).float()

    def error(steps: int) -> float:
        network = networks.train_base(truth, seed=0, steps=steps, batch=256)
        return (network(x.float(), torch.ones(500)) - exact).square().mean().item()

    assert error(150) < 0.1 * error(1)


def test_adapters_move_the_base_towards_their_own_distributions(base):
    tilted = [ring().tilted(reward, 0.5) for reward in learned.ring_rewards()[:2]]
    singles = networks.train_adapters(base, tilted, seed=0, steps=60, batch=128)
    model = learned.Adapted(base, singles)
    x = ring().diffused(2.0).sample(500, torch.Generator().manual_seed(1))
    with model.installed():
        for index, mixture in enumerate(tilted):
            exact = mixture.denoised(x, 2.0).float()
            near = (model.predict(model.unit(index), x.float(), 2.0) - exact).square().mean()
            far = (model.predict(model.unit(1 - index), x.float(), 2.0) - exact).square().mean()
            assert near < far / 2


def test_averaged_factors_are_not_the_averaged_update():
    one, two = adapter(1), adapter(2)
    averaged = networks.average_factors([one, two], [0.25, 0.75])["layers.1"][0]
    a, b = one["layers.1"][0], two["layers.1"][0]
    torch.testing.assert_close(
        averaged.up @ averaged.down, (0.25 * a.up + 0.75 * b.up) @ (0.25 * a.down + 0.75 * b.down)
    )
    soup = 0.25 * a.up @ a.down + 0.75 * b.up @ b.down
    assert (averaged.up @ averaged.down - soup).norm() > 0.3 * soup.norm()
    # With one adapter alone they are the same.
    alone = networks.average_factors([one], [1.0])["layers.1"][0]
    torch.testing.assert_close(alone.up @ alone.down, a.up @ a.down)


def test_methods_that_must_agree_do(base):
    one, two = adapter(1), adapter(2)
    mixed = learned.run_setting(base, [one, two], adapter(3), [0.4, 0.6], seed=0, points=50)
    torch.testing.assert_close(mixed["MSDDA"], mixed["blend"], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(mixed["soup"], mixed["blend"], atol=1e-2)
    assert mixed["linearity gap"] > 0
    # Equal adapters: every way of combining them is that adapter. The adapter trained for the mixture is the same one, too.
    same = learned.run_setting(base, [one, one], one, [0.4, 0.6], seed=0, points=50)
    for method in learned.METHODS[1:-1]:
        torch.testing.assert_close(same[method], same["trained for w"], atol=1e-3, rtol=1e-3)
    assert same["linearity gap"] < 1e-4
    assert not torch.allclose(same["base"], same["trained for w"], atol=1e-2)
