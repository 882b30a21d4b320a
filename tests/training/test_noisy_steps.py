"""The window of noisy steps: the others are the ODE, have no density and no KL, and are not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.training.ddim import ddim_steps
from diffusion_blend.training.noisy_steps import noisy_range
from diffusion_blend.training.policy import step_mean, step_std
from gaussian_model import GaussianModel, chain, final_moments
from training_runs import make_trainer, settings


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("all", range(0, 10)),
        ("0:-2", range(0, 8)),
        ("3:5", range(3, 5)),
        (":4", range(0, 4)),
        ("-2:", range(8, 10)),
        ("0.0:0.8", range(0, 8)),
        ("0.25:.5", range(2, 5)),
        ("auto", range(0, 3)),
    ],
)
def test_windows_by_hand(setting: str, expected: range) -> None:
    assert noisy_range(setting, 10, auto="0:3") == expected


@pytest.mark.parametrize("setting", ["", "most", "1", "a:b", "0:3:2", "5:5", "9:2"])
def test_windows_that_cannot_be(setting: str) -> None:
    with pytest.raises(ValueError, match=r"sampling.noisy_steps"):
        noisy_range(setting, 10)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_outside_the_window_is_diffusers_step_with_eta_0(prediction_type: str) -> None:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)
    scheduler.set_timesteps(5)
    final = float(scheduler.final_alpha_cumprod)
    alphas = scheduler.alphas_cumprod
    steps = ddim_steps(alphas, scheduler.timesteps, final, 1.0, prediction_type, range(1, 3))  # pyright: ignore
    assert steps.noisy.tolist() == [1, 2]
    latents, output, noise = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for k, t in enumerate(scheduler.timesteps.tolist()):
        index = torch.tensor([k])
        ours = step_mean(steps, index, latents, output) + step_std(steps, index, latents) * noise
        eta = float(k in (1, 2))
        theirs = scheduler.step(output, t, latents, eta=eta, variance_noise=noise if eta else None).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def linear_optimum(steps: torch.Tensor, base: tuple[torch.Tensor, torch.Tensor], kl_weight: float) -> float:
    """The best mean of x_0 for the reward x: each noisy step moves its mean by s^2 / alpha times the later slopes."""
    slopes, shifts = base
    mean = 0.0
    for k in range(len(steps)):
        later = float(torch.prod(slopes[k + 1 :]))
        mean = float(slopes[k]) * mean + float(shifts[k]) + float(steps[k]) ** 2 / kl_weight * later
    return mean


def test_training_inside_a_window_reaches_that_windows_optimum(tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run",
        rewards={"known": 1.0},
        sampling={"steps": 20, "samples": 256, "batch": 256, "noisy_steps": "0:12"},
        algorithm={"kl_weight": 0.5, "buffer": 256 * 12, "updates": 6},
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 4},
        value={"updates": 10, "batch": 512, "learning_rate": 3e-3, "hidden": 32},
        run={"iterations": 60, "stop_diversity": 0.0, "save_every": 10**6},
    )
    model = GaussianModel(0.5, 0.6)
    trainer = make_trainer(config, model, {"known": lambda images, prompts: images[:, 0, 0, 0].double()}, ["x"])
    trainer.run()
    steps = trainer.context.steps
    base = chain(model, steps, base=True)
    best = linear_optimum(steps.std, base, 0.5)
    found, before = final_moments(chain(model, steps, base=False), steps.std)[0], final_moments(base, steps.std)[0]
    print(f"base {before:.3f}, trained {found:.3f}, best {best:.3f}")
    assert best - before > 0.2
    assert found == pytest.approx(best, abs=0.06)
    outside = torch.tensor([k for k in range(20) if k >= 12])
    assert float(model.shift.detach()[steps.timesteps[outside]].abs().max()) == 0


def test_dpok_asks_the_base_once_a_step(tmp_path: Path) -> None:
    """The sampler has measured the base's means: the update takes them instead of another pass."""
    calls = {True: 0, False: 0}

    class Counting(GaussianModel):
        def predict(self, latents, timesteps, conditioning, *, base):
            calls[base] += len(latents)
            return super().predict(latents, timesteps, conditioning, base=base)

    config = settings(
        tmp_path / "run",
        rewards={"known": 1.0},
        sampling={"steps": 5, "samples": 8, "batch": 8},
        algorithm={"buffer": 40, "updates": 3},
        run={"iterations": 2},
    )
    make_trainer(config, Counting(0.5, 0.6), {"known": lambda images, prompts: images[:, 0, 0, 0]}, ["x"]).run()
    assert calls[True] == 2 * 5 * 8
    assert calls[False] == 2 * (5 * 8 + 3 * 8)
