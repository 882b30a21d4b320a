"""Reward gradients through the sampler: against finite differences and the known best policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.rewards.guarded import RewardFailed
from diffusion_blend.training.algorithms.draft import Draft
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.command import main
from diffusion_blend.training.config import BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.randomness import trajectory_noise
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel, best_policy, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, redness, same, settings, tiny_trainer

CURVATURE, GRADIENT = 2.0, 2.5


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    x = images[:, 0, 0, 0].double()
    return -CURVATURE / 2 * x**2 + GRADIENT * x


def trainer(tmp_path: Path, **over: Any) -> Trainer:
    config = settings(
        tmp_path / "run",
        "draft",
        rewards={"known": 1.0},
        sampling={"steps": 20, "samples": 512, "batch": 512} | over.pop("sampling", {}),
        algorithm={"kl_weight": 1.0} | over.pop("algorithm", {}),
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 1},
        run={"iterations": 120, "stop_diversity": 0.0, "save_every": 10**6} | over.pop("run", {}),
    )
    return make_trainer(config, GaussianModel(0.5, 0.6), {"known": reward}, ["x"])


def objective(of: Trainer) -> tuple[Tensor, dict[str, float]]:
    assert isinstance(of.algorithm, Draft)
    return of.algorithm.loss(0, torch.zeros(512, dtype=torch.int64), torch.arange(512))


def test_it_reaches_the_best_policy(tmp_path: Path) -> None:
    """With 20 steps the best policy has a variance a little off the tilted distribution's: a control problem's solution."""
    trained = trainer(tmp_path)
    trained.run()
    model, steps = trained.context.model, trained.context.steps
    assert isinstance(model, GaussianModel)
    base = chain(model, steps, base=True)
    best = final_moments(best_policy(base, steps.std, CURVATURE, GRADIENT, 1.0), steps.std)
    found = final_moments(chain(model, steps, base=False), steps.std)
    before = final_moments(base, steps.std)
    print(f"base {before}, trained {found}, best {best}")
    assert found == pytest.approx(best, abs=0.01)
    assert abs(before[0] - best[0]) > 0.2 and abs(before[1] - best[1]) > 0.1


def test_its_gradient_is_that_of_finite_differences(tmp_path: Path) -> None:
    """Also through the base of the KL, whose inputs move with the parameters."""
    of = trainer(tmp_path)
    model = of.context.model
    assert isinstance(model, GaussianModel)
    with torch.no_grad():
        model.slope += 0.05
        model.shift -= 0.1
    loss, _ = objective(of)
    loss.backward()
    for parameter in (model.slope, model.shift):
        assert parameter.grad is not None
        for t in of.context.steps.timesteps[[2, 10, 18]].tolist():
            values = []
            for change in (0.02, -0.02):
                with torch.no_grad():
                    parameter[t] += change
                    values.append(float(objective(of)[0]))
                    parameter[t] -= change
            assert float(parameter.grad[t]) == pytest.approx((values[0] - values[1]) / 0.04, rel=0.02, abs=1e-4)


def test_recomputing_changes_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    """Each step run again in the backward pass switches adapter and base as the first time."""
    found = []
    for recompute in (True, False):
        config = settings(
            tmp_path / str(recompute),
            "draft",
            sampling={"steps": 3, "samples": 4, "batch": 2, "guidance_scale": 2.0},
            algorithm={"kl_weight": 0.01, "recompute": recompute},
            optimizer={"accumulate": 2},
            run={"iterations": 3},
        )
        run = tiny_trainer(tiny_sd, config)
        run.run()
        found.append({name: value.detach() for name, value in run.context.model.trainable().items()})
        assert run.state.history[-1]["kl"] > 0
    assert same(*found)


def test_a_reward_without_gradient_is_refused(
    tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--output",
        str(tmp_path / "run"),
        "--rewards",
        '{"jpeg_compressibility": 1.0}',
        "--base.path",
        str(tiny_sd),
    ]
    words += ["--algorithm.name", "draft", "--prompts.count", "2", "--optimizer.accumulate", "3"]
    assert main(words) == 1
    assert "draft needs reward gradients, and 'jpeg_compressibility' is not differentiable" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def gradients(folder: Path, tmp_path: Path, checkpointing: bool = False, **algorithm: Any) -> dict[str, Tensor]:
    """Gradients of the loss of four trajectories by an adapter that is not fresh."""
    config = settings(
        tmp_path / "run",
        "draft",
        sampling={"steps": 3, "samples": 4, "batch": 4, "guidance_scale": 2.0},
        algorithm={"kl_weight": 0.01, **algorithm},
    )
    base = load_base(BaseConfig(path=str(folder)), torch.device("cpu"), allow_download=False)
    model = DiffusersModel(base, config.adapter, 0, gradient_checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    of = make_trainer(config, model, {"redness": redness})
    assert isinstance(of.algorithm, Draft)
    loss, figures = of.algorithm.loss(0, torch.tensor([0, 1, 0, 1]), torch.arange(4))
    loss.backward()
    assert figures["kl"] > 0
    found = {name: value.grad for name, value in model.trainable().items() if value.grad is not None}
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in found.values())
    return found


@pytest.mark.parametrize("recompute", [True, False])
def test_gradient_checkpointing_changes_no_gradient(recompute: bool, tiny_sd: Path, tmp_path: Path) -> None:
    """The base's pass has a gradient too, and its blocks run again without the adapter."""
    plain = gradients(tiny_sd, tmp_path, recompute=False)
    saving = gradients(tiny_sd, tmp_path, True, recompute=recompute)
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-4, atol=1e-7)


def truncated(of: Trainer, last: int, rows: int) -> dict[str, Tensor]:
    """DRaFT-K's gradient by hand: the state before the last K steps is a constant."""
    model, steps = of.context.model, of.context.steps
    assert isinstance(model, GaussianModel)
    draws = torch.stack([trajectory_noise(0, ("rollout", 0, i), len(steps), (1, 1, 1)) for i in range(rows)])
    draws = draws[:, :, 0, 0, 0].double()
    slope, shift = model.base_line(steps.timesteps)
    slopes, shifts = (p.detach().double()[steps.timesteps].requires_grad_(True) for p in (model.slope, model.shift))
    x, kl = draws[:, 0], torch.zeros(rows, dtype=torch.float64)
    for k in range(len(steps)):
        if k == len(steps) - last:
            x, kl = x.detach(), torch.zeros(rows, dtype=torch.float64)
        base = steps.state[k] * x + steps.output[k] * (slope[k] * x + shift[k])
        mean = base + steps.output[k] * (slopes[k] * x + shifts[k])
        kl = kl + (mean - base).square() / (2 * steps.std[k] ** 2)
        x = mean + steps.std[k] * draws[:, k + 1]
    (kl - (-CURVATURE / 2 * x**2 + GRADIENT * x)).mean().backward()
    assert slopes.grad is not None and shifts.grad is not None
    return {"slope": slopes.grad, "shift": shifts.grad}


@pytest.mark.parametrize("last", [1, 3, 20])
def test_draft_k_is_the_truncated_gradient(last: int, tmp_path: Path) -> None:
    of = trainer(tmp_path, algorithm={"kl_weight": 1.0, "draft_steps": last})
    model, steps = of.context.model, of.context.steps
    assert isinstance(model, GaussianModel)
    with torch.no_grad():
        model.slope += 0.05
        model.shift -= 0.1
    expected = truncated(of, last, 512)
    objective(of)[0].backward()
    for name, parameter in (("slope", model.slope), ("shift", model.shift)):
        assert parameter.grad is not None
        found = parameter.grad.double()[steps.timesteps]
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4)
        assert int((found != 0).sum()) == last


def test_draft_lv_has_the_mean_of_draft_1_and_no_more_variance(tmp_path: Path) -> None:
    """Where the sampler's last level is that of noised clean images: the gradients of the last shift, run by run."""
    spread, means = [], []
    for noises in (1, 8):
        of = trainer(tmp_path, algorithm={"kl_weight": 1.0, "draft_steps": 1, "draft_noises": noises})
        assert isinstance(of.algorithm, Draft) and isinstance(of.context.model, GaussianModel)
        found = []
        for start in range(64):
            of.context.model.shift.grad = None
            of.algorithm.loss(start, torch.zeros(8, dtype=torch.int64), torch.arange(8))[0].backward()
            assert of.context.model.shift.grad is not None
            found.append(float(of.context.model.shift.grad[of.context.steps.timesteps[-1]]))
        values = torch.tensor(found, dtype=torch.float64)
        means.append(float(values.mean()))
        spread.append(float(values.std()))
    assert means[0] == pytest.approx(means[1], abs=4 * spread[0] / 8)
    assert spread[1] <= 1.05 * spread[0]  # the standard deviation of 64 values is known to 9 %


def test_settings_of_the_family_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"algorithm.draft_steps is 7, but sampling.steps is 6"):
        check_config(settings(tmp_path / "run", "draft", algorithm={"draft_steps": 7}))
    with pytest.raises(ValueError, match=r"draft_noises is 2.*set algorithm.draft_steps 1"):
        check_config(settings(tmp_path / "run", "draft", algorithm={"draft_noises": 2}))


def broken(kind: str) -> Any:
    def call(images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = images.mean((1, 2, 3))
        if kind == "raises":
            raise KeyError("a dictionary without this prompt")
        if kind == "hangs":
            time.sleep(30)
        return {"column": values[:, None], "scalar": values.mean(), "nan": values * torch.nan}.get(kind, values)

    return call


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "reward 'known' raised KeyError"),
        ("hangs", "reward 'known' has not answered after 0.2 s"),
        ("column", r"reward 'known' returned shape \(4, 1\) for 4 images"),
        ("scalar", r"reward 'known' returned shape \(\) for 4 images"),
        ("nan", "reward 'known' gave nan for the prompt 'x'"),
    ],
)
def test_the_reward_guard_covers_it(kind: str, message: str, tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run", "draft", rewards={"known": 1.0}, reward_timeout=0.2, sampling={"samples": 4, "batch": 4}
    )
    of = make_trainer(config, GaussianModel(0.5, 0.6), {"known": broken(kind)}, ["x"])
    with pytest.raises((RewardFailed, ValueError), match=message):
        of.run()
