"""Flow matching as a Gaussian policy, against closed forms and diffusers' scheduler."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusion_blend.training.flow import flow_steps
from diffusion_blend.training.policy import PolicySteps, noise_to_level, step_mean, training_target
from gaussian_model import GaussianModel, best_policy, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, settings


class FlowGaussian(GaussianModel):
    """The same Gaussian under ``x_t = (1 - t) x_0 + t eps``; parameters are per thousandth of t."""

    def policy_steps(self, steps: int, eta: float, noisy: Iterable[int] | None = None) -> PolicySteps:  # pyright: ignore
        return flow_steps(torch.linspace(1, 0, steps + 1), eta, noisy)

    def base_line(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``v = E[eps - x_0 | x_t]`` is ``a x + b``."""
        t = timesteps.double() / 1000
        variance = (1 - t).square() * self.variance + t.square()
        slope = (t - (1 - t) * self.variance) / variance
        return slope, -self.mean - slope * (1 - t) * self.mean

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], *, base: bool) -> Tensor:
        slope, shift = (line.float() for line in self.base_line(timesteps))
        place = (timesteps - 1).long().clamp(min=0)
        if not base:
            slope, shift = slope + self.slope[place], shift + self.shift[place]
        return slope.view(-1, 1, 1, 1) * latents + shift.view(-1, 1, 1, 1)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_sde_has_the_marginals_of_the_ode(eta: float) -> None:
    """With many steps x_0 is N(mean, variance), however large the noise."""
    model = FlowGaussian(0.5, 0.6)
    steps = model.policy_steps(2000, eta)
    mean, variance = final_moments(chain(model, steps, base=True), steps.std)  # pyright: ignore[reportArgumentType]
    assert mean == pytest.approx(0.5, abs=0.01)
    assert variance == pytest.approx(0.6, rel=0.02)


def test_one_step_by_hand() -> None:
    # t = .5 -> .25, eta .8: s^2 = .64, x' = x - .25 [v + .64 (x + .5 v)] + .8 * .5 noise
    steps = flow_steps(torch.tensor([0.5, 0.25, 0.0]), 0.8)
    assert float(steps.state[0]) == pytest.approx(1 - 0.25 * 0.64)
    assert float(steps.output[0]) == pytest.approx(-0.25 * (1 + 0.64 * 0.5))
    assert float(steps.std[0]) == pytest.approx(0.4)


def test_at_t_1_the_next_time_stands_in_the_denominator() -> None:
    steps = flow_steps(torch.tensor([1.0, 0.75, 0.0]), 0.7)
    assert float(steps.std[0]) == pytest.approx(0.7 * math.sqrt(1 / 0.25 * 0.25))
    assert bool(torch.stack([steps.state, steps.output, steps.std]).isfinite().all())


def test_steps_without_noise_are_diffusers_euler_steps_and_targets_lead_back() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    steps = flow_steps(scheduler.sigmas, 0.7, range(2, 4))
    assert steps.noisy.tolist() == [2, 3]
    torch.testing.assert_close(steps.timesteps, scheduler.timesteps)
    clean, noise, output = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for k, t in enumerate(scheduler.timesteps):
        index = torch.tensor([k])
        noisy = noise_to_level(steps, index, clean, noise)
        torch.testing.assert_close(noisy, scheduler.scale_noise(clean, t[None], noise), rtol=1e-5, atol=1e-5)
        found = noisy + steps.x0_output[k].float() * training_target(steps, index, clean, noise)
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)
        theirs = scheduler.step(output, t, noisy).prev_sample
        if k not in (2, 3):
            torch.testing.assert_close(step_mean(steps, index, noisy, output), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("times", [[1.0, 1.0, 0.0], [0.2, 0.5, 0.0], [1.2, 0.5, 0.0]])
def test_times_that_cannot_be(times: list[float]) -> None:
    with pytest.raises(ValueError, match="do not fall from 1 to 0"):
        flow_steps(torch.tensor(times), 0.7)
    with pytest.raises(ValueError, match="eta is 0"):
        flow_steps(torch.tensor([1.0, 0.0]), 0)


@pytest.mark.parametrize(("curvature", "gradient"), [(0.0, 1.0), (2.0, 2.5)])
def test_training_reaches_the_best_policy(curvature: float, gradient: float, tmp_path: Path) -> None:
    def reward(images: Tensor, prompts: Any) -> Tensor:
        x = images[:, 0, 0, 0].double()
        return -curvature / 2 * x**2 + gradient * x

    config = settings(
        tmp_path / "run",
        "draft",
        rewards={"known": 1.0},
        sampling={"steps": 20, "samples": 512, "batch": 512, "eta": 0.7},
        algorithm={"kl_weight": 1.0},
        optimizer={"learning_rate": 0.03, "clip_norm": 1e9},
        run={"iterations": 150, "stop_diversity": 0.0, "save_every": 10**6},
    )
    model = FlowGaussian(0.5, 0.6)
    trainer = make_trainer(config, model, {"known": reward}, ["x"])
    trainer.run()
    steps = trainer.context.steps
    base = chain(model, steps, base=True)  # pyright: ignore[reportArgumentType]
    best = final_moments(best_policy(base, steps.std, curvature, gradient, 1.0), steps.std)
    place = (steps.timesteps - 1).long().clamp(min=0)
    slope, shift = model.base_line(steps.timesteps)
    slope, shift = slope + model.slope.detach().double()[place], shift + model.shift.detach().double()[place]
    found = final_moments((steps.state + steps.output * slope, steps.output * shift), steps.std)
    before = final_moments(base, steps.std)
    print(f"base {before}, trained {found}, best {best}")
    assert abs(best[0] - before[0]) > 0.2
    assert found == pytest.approx(best, abs=0.03)
