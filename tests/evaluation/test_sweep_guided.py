"""CoDe and reward-gradient guidance against what they are defined by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.evaluation.sweep.reward_guided import BASE, clean_estimates
from diffusion_blend.training.config import BaseConfig
from diffusion_blend.training.models.bases import load_base
from sweeps import latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd
from torch import Tensor

World = tuple[Path, dict[str, Path]]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base", prediction_type="epsilon")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_clean_estimates_are_diffusers_predicted_original_sample(prediction_type: str, tmp_path: Path) -> None:
    folder = save_tiny_sd(tmp_path / "base", prediction_type=prediction_type)
    base = load_base(BaseConfig(path=str(folder), resolution=8), torch.device("cpu"), allow_download=False)

    estimates = clean_estimates(base, base.policy_steps(5, 1.0))
    scheduler: Any = DDIMScheduler.from_config(dict(base.scheduler))
    scheduler.set_timesteps(5)
    x, output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for index, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, timestep, x).pred_original_sample
        torch.testing.assert_close(estimates.at(index, x, output), expected, rtol=1e-3, atol=1e-3)


def test_code_with_one_candidate_is_the_base(world: World, tmp_path: Path) -> None:
    ready = sweep(settings(tmp_path / "out", *world, methods=["base", "code"], code_candidates=1, code_block=2))
    torch.testing.assert_close(latents(ready, 0, range(3)), latents(ready, 1, range(3)), **CLOSE)


def test_code_choosing_only_at_the_end_is_the_best_of_its_candidates(world: World, tmp_path: Path) -> None:
    """Best of N whole runs of the base: at least as good as the base picture by picture, and better somewhere."""
    over = {"methods": ["base", "code"], "code_candidates": 6, "code_block": 5, "images_per_point": 6, "batch": 6}
    rows = sweep(settings(tmp_path / "out", *world, **over)).run()
    base, code = ([row["a"] for row in rows if row["method"] == method] for method in ("base", "code"))
    assert all(c >= b - 1e-5 for b, c in zip(base, code, strict=True))
    assert max(c - b for b, c in zip(base, code, strict=True)) > 0.1
    # The first step is shared: 1 + 6 * 4 calls; no KL has a closed form.
    assert {(row["calls"], row["kl"]) for row in rows if row["method"] == "code"} == {(25, None)}


def test_code_goes_on_from_the_candidate_its_judge_prefers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that always prefers the candidate it sees first must give the base, with many candidates as well."""
    ready = sweep(settings(tmp_path / "out", *world, methods=["base", "code"], code_candidates=3, code_block=2))
    seen: list[int] = []

    def first(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(len(images))
        return torch.full((len(images),), -float(len(seen)), dtype=torch.float64)

    code = type(ready.runner).code

    def judged(self: Any, recipe: Any) -> Any:
        made = code(self, recipe)
        object.__setattr__(made, "judge", first)
        return made

    monkeypatch.setattr(type(ready.runner), "code", judged)
    torch.testing.assert_close(latents(ready, 0, range(3)), latents(ready, 1, range(3)), **CLOSE)
    assert seen == [3] * 9  # three choices of three


def test_code_is_the_same_whatever_the_chunk(world: World, tmp_path: Path) -> None:
    ready = sweep(settings(tmp_path / "out", *world, methods=["code"], code_candidates=3, code_block=2))
    torch.testing.assert_close(latents(ready, 0, range(4))[2:3], latents(ready, 0, [2]), **CLOSE)


def test_reward_gradients_point_where_finite_differences_do(world: World, tmp_path: Path) -> None:
    """One step: the mean moves by ``lambda s^2 / alpha`` along the reward's slope, taken here by differences."""
    over = {"methods": ["base", "rgg"], "weights": [[1, 0]], "steps": 1, "rgg_alpha": 1e-3, "images_per_point": 1}
    ready = sweep(settings(tmp_path / "out", *world, **over))
    runner, chunk = ready.runner, ready._chunk(range(1))
    shift = (latents(ready, 1, [0]) - latents(ready, 0, [0])).flatten().double()
    expected_length = 1.024**-1 * float(runner.steps.std[0]) ** 2 / 1e-3
    assert float(shift.norm()) == pytest.approx(expected_length, rel=1e-2)
    estimates = clean_estimates(runner.network.base, runner.steps)
    inputs = runner.network.inputs(chunk.conditioning)
    start = chunk.noise[:, 0]

    def reward(x: Tensor) -> float:
        with torch.no_grad(), runner.network.adapted([{}]):
            output = runner.network.output(BASE, x, int(runner.steps.timesteps[0]), inputs)
            images = runner.network.decode(estimates.at(0, x, output))
            return float(ready.rewards["a"](images, chunk.prompts)[0])

    slope = torch.zeros(start.numel(), dtype=torch.float64)
    for i in range(start.numel()):
        change = torch.zeros(start.numel())
        change[i] = 1e-2
        change = change.view_as(start)
        slope[i] = reward(start + change) - reward(start - change)
    assert float(torch.nn.functional.cosine_similarity(slope, shift, dim=0)) > 0.98


def test_rgg_raises_its_reward_and_measures_its_kl_for_nothing(world: World, tmp_path: Path) -> None:
    over = {"methods": ["base", "rgg"], "rgg_alpha": 0.02, "images_per_point": 6, "batch": 3}
    rows = sweep(settings(tmp_path / "out", *world, **over)).run()
    base, rgg = ([row for row in rows if row["method"] == method] for method in ("base", "rgg"))
    assert sum(row["a"] for row in rgg) > sum(row["a"] for row in base)
    assert all(row["kl"] > 0 for row in rgg)
    assert {(row["calls"], row["kl_calls"]) for row in rgg} == {(5, 0)}


@pytest.mark.parametrize("reward", ["jpeg_compressibility", "diffusion_blend.miniature.rewards:compressibility"])
def test_rgg_refuses_a_reward_without_gradient_by_name(world: World, tmp_path: Path, reward: str) -> None:
    rewards = {"a": "colourfulness", "b": reward}
    with pytest.raises(ValueError, match="rgg needs reward gradients, and 'b'"):
        sweep(settings(tmp_path / "out", *world, methods=["rgg"], rewards=rewards))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["code", "rgg"])
def test_methods_that_follow_rewards_need_one_for_each_adapter(world: World, tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match="none named 'b'"):
        sweep(settings(tmp_path / "out", *world, methods=[method], rewards={"a": "colourfulness"}))
