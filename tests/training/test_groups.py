"""GRPO and DiffusionNFT: groups of images of one prompt, normalized rewards, and what is learned from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.algorithms.grpo import group_advantages
from diffusion_blend.training.algorithms.nft import contrastive_loss
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, same, settings


def value(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0, 0, 0].double()


def trainer(tmp_path: Path, name: str, **over: Any) -> Trainer:
    config = settings(
        tmp_path / "run",
        name,
        rewards={"known": 1.0},
        resume=over.pop("resume", False),
        sampling={"steps": 10, "samples": 64, "batch": 64} | over.pop("sampling", {}),
        algorithm={"kl_weight": 0.0, "group": 8, "updates": 4, "clip": "ppo"} | over.pop("algorithm", {}),
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 1},
        run={"iterations": 20, "stop_diversity": 0.0, "save_every": 10**6} | over.pop("run", {}),
    )
    return make_trainer(config, GaussianModel(0.5, 0.6), {"known": value}, ["x", "y"])


def test_advantages_by_hand() -> None:
    scores = {"a": torch.tensor([1.0, 3.0, 10.0, 10.0]).double(), "b": torch.tensor([0.0, 200.0, 5.0, 7.0]).double()}
    found = group_advantages(scores, {"a": 2.0, "b": 0.5}, 2)
    # Each reward is -1 and 1 within its group, in any unit. A group of equal rewards has advantages of 0.
    torch.testing.assert_close(found, torch.tensor([-2.5, 2.5, -0.5, 0.5]).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["grpo", "nft"])
def test_an_iteration_holds_whole_groups_of_one_prompt(name: str, tmp_path: Path) -> None:
    of = trainer(tmp_path, name)
    data = of.algorithm.collector.from_policy(3, measure_kl=False)  # pyright: ignore
    groups = data.prompt.view(-1, 8)
    assert bool((groups == groups[:, :1]).all())
    assert groups[:, 0].unique().tolist() == [0, 1]


@pytest.mark.parametrize("name", ["grpo", "nft"])
def test_the_mean_reward_of_a_gaussian_rises(name: str, tmp_path: Path) -> None:
    of = trainer(tmp_path, name)
    model, steps = of.context.model, of.context.steps
    assert isinstance(model, GaussianModel)
    before = final_moments(chain(model, steps, base=True), steps.std)
    of.run()
    after = final_moments(chain(model, steps, base=False), steps.std)
    print(f"{name}: mean {before[0]:.3f} -> {after[0]:.3f}")
    assert after[0] > before[0] + 0.15
    assert of.state.history[0].get("ratio_deviation", 0.0) < 1 and of.state.history[0]["reward_std"] > 0


def test_without_updates_the_ratio_is_one(tmp_path: Path) -> None:
    of = trainer(tmp_path, "grpo", run={"iterations": 1}, algorithm={"epochs": 1})
    first: list[float] = []
    original = of.algorithm.optimizer.step  # pyright: ignore

    def step(*arguments: Any) -> dict[str, float]:
        figures = original(*arguments)
        first.append(figures["ratio_deviation"])
        return figures

    of.algorithm.optimizer.step = step  # pyright: ignore
    of.run()
    assert first[0] < 1e-12 and first[-1] > 1e-6


def test_a_kl_weight_holds_the_policy_at_the_base(tmp_path: Path) -> None:
    kls = []
    for kl_weight in (1e-6, 3.0):
        of = trainer(tmp_path, "grpo", algorithm={"kl_weight": kl_weight})
        of.run()
        kls.append(of.state.history[-1]["kl"])
    assert kls[1] < kls[0] / 3


@pytest.mark.parametrize("name", ["grpo", "ddpo", "dpok"])
def test_a_drawn_window_trains_all_noisy_steps_in_the_end(name: str, tmp_path: Path) -> None:
    of = trainer(
        tmp_path,
        name,
        sampling={"noisy_steps": "0:8", "window_steps": 2},
        run={"iterations": 12},
        algorithm={"buffer": 128},
    )
    windows = {tuple(of.context.sampling_steps(i).noisy.tolist()) for i in range(12)}
    assert all(len(window) == 2 and window[1] == window[0] + 1 for window in windows) and len(windows) > 2
    of.run()
    model, steps = of.context.model, of.context.steps
    assert isinstance(model, GaussianModel)
    trained = {k for window in windows for k in window}
    moved = model.shift.detach()[steps.timesteps].abs() > 0
    assert {k for k in range(10) if moved[k]} == trained


def test_the_contrastive_loss_by_hand() -> None:
    """One element, target 0, old 1, output 3, strength .5: out+ = 2, out- = 0."""
    output, old, target = (torch.full((1, 1, 1, 1), v) for v in (3.0, 1.0, 0.0))
    one = torch.ones(1)
    # x0 errors are output errors / sqrt(divisor): 2 / 2 = 1, squared 1, over its absolute 1
    assert float(contrastive_loss(output, old, target, one, 4 * one, 0.5)) == pytest.approx(1.0)
    assert float(contrastive_loss(output, old, target, 0 * one, 4 * one, 0.5)) == pytest.approx(0.0)


def test_images_that_are_all_average_teach_nothing_at_first() -> None:
    """With r = 1/2 and the trained network where the old one is, both terms' gradients cancel."""
    generator = torch.Generator().manual_seed(0)
    old, target = torch.randn(2, 4, 3, 5, 5, generator=generator).unbind(0)
    output = old.clone().requires_grad_(True)
    for optimality, zero in ((0.5, True), (0.9, False)):
        loss = contrastive_loss(output, old, target, torch.full((4,), optimality), torch.ones(4), 1.0).mean()
        (gradient,) = torch.autograd.grad(loss, output)
        assert (float(gradient.abs().max()) < 1e-7) == zero


@pytest.mark.parametrize("name", ["grpo", "nft"])
def test_a_resumed_run_ends_bit_identical(name: str, tmp_path: Path) -> None:
    ends = []
    for folder, stops in (("whole", [4]), ("cut", [2, 4])):
        for number, iterations in enumerate(stops):
            over = {"run": {"iterations": iterations, "save_every": 2}, "resume": number > 0}
            of = trainer(tmp_path / folder, name, **over)
            of.run()
        ends.append({key: parameter.detach().clone() for key, parameter in of.context.model.trainable().items()})
    assert same(*ends)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sampling.samples 64 is not a multiple of algorithm.group 7"):
        check_config(settings(tmp_path, "grpo", sampling={"samples": 64, "batch": 64}, algorithm={"group": 7}))
