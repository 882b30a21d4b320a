"""Reward gradients through the sampler: against finite differences and the known best policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.algorithms.draft import Draft
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.train import main
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel, best_policy, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, same, settings, tiny_trainer

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


def test_a_second_way_of_saving_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base.gradient_checkpointing is on"):
        check_config(settings(tmp_path / "run", "draft", base={"gradient_checkpointing": True}))
