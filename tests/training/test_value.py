"""The value function is a baseline: it lowers the noise of an advantage and must know nothing of the advantage's own return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel
from no_float64 import WithoutFloat64
from torch import Tensor
from training_runs import make_trainer, same, settings


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0, 0, 0].double()


def trainer(folder: Path, buffer: int = 5120, **value: Any) -> Trainer:
    """A trainer of a Gaussian pixel whose reward is its value."""
    config = settings(
        folder,
        rewards={"brightness": 1.0},
        sampling={"steps": 20, "samples": 256, "batch": 256},
        algorithm={"kl_weight": 0.5, "buffer": buffer, "updates": 3},
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 4},
        value={"updates": 10, "batch": 512, "learning_rate": 3e-3, "hidden": 32, **value},
        run={"iterations": 8, "stop_diversity": 0.0, "save_every": 10**6},
    )
    return make_trainer(config, GaussianModel(0.5, 0.6), {"brightness": brightness}, ["x"])


def iterated(made: Trainer, iterations: int) -> Any:
    """The algorithm after some iterations."""
    for iteration in range(iterations):
        made.algorithm.iterate(iteration)
    return made.algorithm


@pytest.mark.parametrize("iterations", [1, 2])
def test_an_advantage_does_not_read_a_fit_to_its_own_return(iterations: int, tmp_path: Path) -> None:
    """How well an iteration's fit goes changes the next iteration's update of the adapter, but not its own."""
    adapters, values = [], []
    for rate in (1e-4, 0.3):
        made = trainer(tmp_path / str(rate))
        algorithm = iterated(made, iterations - 1)
        algorithm.value.optimizer.param_groups[0]["lr"] = rate
        algorithm.iterate(iterations - 1)
        adapters.append([parameter.detach().clone() for parameter in made.context.model.trainable().values()])
        values.append(algorithm.value.value.state_dict())
    assert same(*adapters)
    assert any(bool(parameter.any()) for parameter in adapters[0])
    assert not same(*values)


def test_baselines_stay_with_their_steps(tmp_path: Path) -> None:
    """The replay buffer keeps each baseline as it was before the return was seen, and a checkpoint brings it back."""
    algorithm = iterated(trainer(tmp_path / "run", buffer=3 * 5120), 1)
    first = algorithm.buffer.baseline.clone()
    assert first.std() == 0  # no return was seen yet, so all are the mean
    algorithm.iterate(1)
    assert torch.equal(algorithm.buffer.baseline[: len(first)], first)
    assert algorithm.buffer.baseline[len(first) :].std() > 0
    restored = trainer(tmp_path / "restored", buffer=3 * 5120).algorithm
    restored.load_state_dict(algorithm.state_dict())
    assert torch.equal(restored.buffer.baseline, algorithm.buffer.baseline)


def test_baselines_need_no_float64_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = iterated(trainer(tmp_path / "run"), 2)
    wanted = algorithm.value.with_baseline(algorithm.buffer).baseline
    predicted = algorithm.value._predicted
    monkeypatch.setattr(algorithm.value, "_predicted", lambda steps: predicted(steps).as_subclass(WithoutFloat64))
    assert torch.equal(algorithm.value.with_baseline(algorithm.buffer).baseline, wanted)


def test_a_buffer_without_baselines_gets_them(tmp_path: Path) -> None:
    """Checkpoints of earlier versions have none."""
    algorithm = iterated(trainer(tmp_path / "run"), 2)
    saved = algorithm.state_dict()
    saved["buffer"] = {name: column for name, column in saved["buffer"].items() if name != "baseline"}
    restored = trainer(tmp_path / "restored").algorithm
    restored.load_state_dict(saved)
    wanted = algorithm.value.with_baseline(algorithm.buffer).baseline
    assert torch.equal(restored.buffer.baseline, wanted)


def test_the_baseline_lowers_the_noise(tmp_path: Path) -> None:
    """On steps that the fit has not seen, the advantage varies less than the return. Without a fit it varies as much."""
    shares = {}
    for updates in (0, 10):
        made = trainer(tmp_path / str(updates), updates=updates)
        fresh = iterated(made, 8).buffer
        shares[updates] = float((fresh.returns - fresh.baseline).var() / fresh.returns.var())
    print(f"share of the variance without a fit {shares[0]:.3f}, with one {shares[10]:.3f}")
    assert shares[0] == pytest.approx(1, abs=1e-9)
    assert shares[10] < 0.7
