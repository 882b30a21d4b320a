"""Reward-weighted regression: weights by hand, and the tilted Gaussian that it must reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_blend.training.algorithms.rwr import (
    effective_share,
    min_snr_weight,
    partners_of_the_same_prompt,
    tilt_weights,
)
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.ddim import ddim_steps
from diffusion_blend.training.policy import noise_to_level, training_target
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel, alphas_cumprod, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, settings


def test_weights_are_the_exponential_tilt_of_each_prompt_by_itself():
    reward = torch.tensor([1.0, 2.0, 0.5, 0.5, 3.0], dtype=torch.float64)
    prompt = torch.tensor([7, 7, 2, 2, 5])
    weights = tilt_weights(reward, prompt, 0.5)
    first = np.exp(np.array([1.0, 2.0]) / 0.5)
    np.testing.assert_allclose(weights[:2], first / first.mean(), rtol=1e-12)
    assert weights[2:].tolist() == [1.0, 1.0, 1.0]


def test_weights_survive_rewards_that_overflow_and_shift():
    reward = torch.tensor([1e5, 1e5 + 1, -1e5, -1e5 + 1], dtype=torch.float64)
    weights = tilt_weights(reward, torch.tensor([0, 0, 1, 1]), 1.0)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights[:2], weights[2:])


def test_partners_are_drawn_evenly_from_the_same_prompt():
    prompt = torch.tensor([3, 1, 3, 3, 1, 7])
    rows = torch.tensor([0, 1, 5]).repeat(3000)
    partners = partners_of_the_same_prompt(prompt, rows, torch.Generator().manual_seed(0))
    assert (prompt[partners] == prompt[rows]).all()
    counts = torch.bincount(partners, minlength=6)
    np.testing.assert_allclose(counts, [1000, 1500, 1000, 1000, 1500, 3000], rtol=0.1)


def test_the_effective_share_of_normal_rewards_is_the_known_one():
    """For r ~ N(0, s^2): E[w]^2 / E[w^2] = exp(-s^2 / alpha^2)."""
    reward = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = effective_share(tilt_weights(reward, torch.zeros(len(reward), dtype=torch.int64), 1.25))
    assert share == pytest.approx(np.exp(-1 / 1.25**2), rel=0.02)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_targets_are_those_of_diffusers(prediction_type):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([900, 400, 10])
    steps = ddim_steps(scheduler.alphas_cumprod, timesteps, 1.0, 1.0, prediction_type)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
    index = torch.tensor([0, 1, 2])
    noisy = noise_to_level(steps, index, clean, noise)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps), atol=1e-5, rtol=1e-5)
    target = training_target(steps, index, clean, noise)
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, timesteps), atol=1e-5, rtol=1e-5)
    # Whatever the parametrisation, a network that puts out the target leads the step's mean back to x_0.
    for row, t in enumerate(timesteps.tolist()):
        scheduler.set_timesteps(1000)
        found = scheduler.step(target[row : row + 1], t, noisy[row : row + 1], eta=0).pred_original_sample
        torch.testing.assert_close(found, clean[row : row + 1].clamp(-1, 1), atol=1e-3, rtol=1e-3)


def test_min_snr_weights_are_the_published_ones():
    for prediction_type, expected in (("epsilon", [1.0, 1.0, 5 / 99]), ("v_prediction", [0.01, 0.5, 5 / 100])):
        # abar of .01, .5 and .99: snr of 1/99, 1 and 99
        steps = ddim_steps(torch.tensor([0.99, 0.5, 0.01]), torch.tensor([2, 1, 0]), 1.0, 1.0, prediction_type)
        torch.testing.assert_close(
            min_snr_weight(steps, torch.arange(3)).float(), torch.tensor(expected), rtol=1e-4, atol=0
        )


def train(tmp_path: Path, gradient: float, kl_weight: float, **over: Any) -> Trainer:
    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return gradient * images[:, 0, 0, 0].double()

    config = settings(
        tmp_path / "run",
        "rwr",
        rewards={"known": 1.0},
        # Little noise, so that the sampler's own error stays out of it: that of 20 steps with eta 1 is large.
        sampling={"steps": 20, "samples": 2048, "batch": 256, "eta": 0.1} | over.pop("sampling", {}),
        algorithm={"kl_weight": kl_weight, "buffer": 10**5, "updates": 150} | over.pop("algorithm", {}),
        optimizer={"learning_rate": 0.01, "clip_norm": 1e9, "accumulate": 4},
        run={"iterations": 4, "stop_diversity": 0.0, "save_every": 10**6} | over.pop("run", {}),
        **over,
    )
    trainer = make_trainer(config, GaussianModel(0.5, 0.6), {"known": reward}, ["x"])
    trainer.run()
    return trainer


def test_it_reaches_the_tilted_gaussian(tmp_path: Path) -> None:
    """N(mu, v) exp(g x / alpha) is N(mu + v g / alpha, v)."""
    trainer = train(tmp_path, gradient=1.0, kl_weight=0.8)
    model, steps = trainer.context.model, trainer.context.steps
    assert isinstance(model, GaussianModel)
    base_mean, base_variance = final_moments(chain(model, steps, base=True), steps.std)
    mean, variance = final_moments(chain(model, steps, base=False), steps.std)
    tilted = base_mean + base_variance / 0.8
    # It learns the exact denoiser of N(tilted, base_variance); the sampler's own error at 20 steps then comes on top again.
    ideal = GaussianModel(tilted, base_variance)
    expected = final_moments(chain(ideal, steps, base=True), steps.std)
    print(
        f"base {base_mean:.3f} {base_variance:.3f}, trained {mean:.3f} {variance:.3f}, expected {expected[0]:.3f} "
        f"{expected[1]:.3f}, tilted mean {tilted:.3f}"
    )
    assert tilted - base_mean > 0.5
    assert mean == pytest.approx(expected[0], abs=0.04)
    assert mean == pytest.approx(tilted, abs=0.1)
    assert variance == pytest.approx(expected[1], rel=0.08)


@pytest.mark.parametrize("control_variate", [True, False])
def test_a_reward_without_preference_leaves_the_base_alone(tmp_path: Path, control_variate: bool) -> None:
    """With eta 1 the sampler's own error is large: plain regression learns it, and so it is there twice."""
    trainer = train(
        tmp_path,
        gradient=0.0,
        kl_weight=0.8,
        sampling={"eta": 1.0, "steps": 10, "samples": 1024},
        algorithm={"control_variate": control_variate, "updates": 100},
        run={"iterations": 2, "stop_diversity": 0.0},
    )
    model, steps = trainer.context.model, trainer.context.steps
    assert isinstance(model, GaussianModel)
    base = final_moments(chain(model, steps, base=True), steps.std)
    trained = final_moments(chain(model, steps, base=False), steps.std)
    print(f"base {base}, trained {trained}, truth (0.5, 0.6)")
    if control_variate:
        assert trained == pytest.approx(base, abs=0.03)
    else:
        assert trained[1] < base[1] - 0.06  # the sampler loses variance, and loses it again


def test_the_samples_are_the_bases_throughout(tmp_path: Path) -> None:
    """However far the adapter has moved, the mean reward of what it learns from stays the base's."""
    trainer = train(tmp_path, gradient=1.0, kl_weight=0.8)
    rewards = [row["reward"] for row in trainer.state.history]
    assert max(rewards) - min(rewards) < 0.1
    assert all(row["effective_share"] < 0.9 for row in trainer.state.history)


def test_a_kl_weight_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"algorithm.kl_weight is 0: rwr weighs samples by exp\(reward / kl_weight\)"):
        check_config(settings(tmp_path / "x", "rwr", algorithm={"kl_weight": 0.0}))


def test_gaussian_schedule_is_the_one_of_the_steps() -> None:
    steps = GaussianModel(0.0, 1.0).policy_steps(10, 1.0)
    torch.testing.assert_close(steps.alpha_bar, alphas_cumprod()[steps.timesteps])
