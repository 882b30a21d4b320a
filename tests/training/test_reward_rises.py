"""The whole loop on a tiny pipeline: the reward rises against its own noise, a larger KL weight means less KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.rollout import collect
from diffusion_blend.training.trainer import Trainer
from scipy import stats
from training_runs import redness, settings, tiny_trainer

ROWS = 256


def rewards_of(trainer: Trainer, *, base: bool) -> torch.Tensor:
    """Rewards of the trained policy (or the base) with the same noise, which no training has seen."""
    prompt = torch.arange(ROWS) % 2
    steps = trainer.context.steps
    draws = torch.randn(
        ROWS, len(steps) + 1, *trainer.context.model.latent_shape, generator=torch.Generator().manual_seed(99)
    )
    runs = collect(
        trainer.context.model,
        steps,
        trainer.context.prompts.conditioning(prompt),
        draws,
        1.0,
        measure_kl=False,
        base=base,
    )
    return redness(runs.images, []).double()


@pytest.mark.parametrize("name", ["dpok", "ddpo"])
def test_the_reward_rises_against_its_own_noise(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    gains = []
    for seed in range(3):
        trainer = tiny_trainer(tiny_sd, settings(tmp_path / f"{name}{seed}", name, run={"seed": seed}))
        trainer.run()
        before, after = rewards_of(trainer, base=True), rewards_of(trainer, base=False)
        gains.append(float((after - before).mean()))
        paired = stats.ttest_rel(after.numpy(), before.numpy(), alternative="greater")
        assert paired.pvalue < 1e-6, f"seed {seed}: gain {gains[-1]:.3f}, p {paired.pvalue:.2g}"
    print(f"{name}: gains {[f'{gain:.3f}' for gain in gains]}")
    across_seeds = stats.ttest_1samp(gains, 0, alternative="greater")
    assert across_seeds.pvalue < 0.05


def test_weights_make_one_reward_of_several(tiny_sd: Path, tmp_path: Path) -> None:
    """r(w) can be trained directly: with weight -1 the same reward falls."""
    config = settings(tmp_path / "minus", rewards={"redness": -1.0})
    trainer = tiny_trainer(tiny_sd, config)
    trainer.run()
    assert float((rewards_of(trainer, base=False) - rewards_of(trainer, base=True)).mean()) < -0.03


def test_the_first_optimizer_step_of_a_run_sees_ratio_exactly_one(tiny_sd: Path, tmp_path: Path) -> None:
    """In the real loop, with shuffled rows in batches of the sampler's size and guidance on; later steps move away."""
    config = settings(
        tmp_path / "run",
        sampling={"samples": 32, "batch": 8, "guidance_scale": 3.0},
        optimizer={"accumulate": 2},
        algorithm={"buffer": 160, "updates": 2},
        run={"iterations": 1},
    )
    trainer = tiny_trainer(tiny_sd, config)
    deviations: list[float] = []
    original = trainer.algorithm.optimizer.step

    def step(*arguments: Any) -> dict[str, float]:
        figures = original(*arguments)
        deviations.append(figures["ratio_deviation"])
        return figures

    trainer.algorithm.optimizer.step = step  # pyright: ignore[reportAttributeAccessIssue]
    trainer.run()
    assert deviations[0] == 0.0
    assert deviations[1] > 1e-4
