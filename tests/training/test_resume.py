"""A killed run, resumed, ends as if nothing had happened; a checkpoint is whole or not there."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_blend.artifacts import files
from diffusion_blend.training import checkpoints
from diffusion_blend.training.checkpoints import list_checkpoints, load_state, save_checkpoint
from diffusion_blend.training.state import random_state, restore_random_state
from safetensors.torch import load_file
from training_child import Fate, run
from training_runs import same, settings, tiny_trainer


def command(base: Path, output: Path, *more: str) -> list[str]:
    small = {
        "output": output,
        "rewards": '{"own_rewards:redness": 1.0}',
        "base.path": base,
        "prompts.count": 2,
        "sampling.steps": 3,
        "sampling.guidance_scale": 2.0,
        "sampling.samples": 4,
        "sampling.batch": 2,
        "algorithm.buffer": 12,
        "algorithm.updates": 2,
        "optimizer.accumulate": 2,
        "optimizer.learning_rate": 0.01,
        "value.batch": 6,
        "run.iterations": 5,
        "run.save_every": 2,
        "run.watch_every": 3,
        "run.watch_samples": 2,
    }
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    return [*options, *more]


@pytest.mark.parametrize("name", ["dpok", "ddpo"])
def test_killed_and_resumed_ends_bit_identical(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    extra = ["--algorithm.name", name, "--algorithm.statistics_minimum", "2"]
    log, cut = tmp_path / "log", tmp_path / "cut"
    whole = run(command(tiny_sd, tmp_path / "whole", *extra), tmp_path / "whole", Fate(), log)
    assert whole == 0, log.read_text()[-2000:]
    # Calls of the reward: watch, iterations 1, 2, 3, watch, iteration 4: killed inside it, after checkpoint 2.
    fate = Fate(environment={"KILL_AT": "6", "COUNT_IN": str(tmp_path / "calls")})
    assert run(command(tiny_sd, cut, *extra), cut, fate, log) == -9
    assert [path.name for path in list_checkpoints(cut / "checkpoints")] == ["checkpoint-00000002"]
    assert not (cut / "adapter.safetensors").exists()
    resumed = run(command(tiny_sd, cut, *extra, "--resume"), cut, Fate(), log)
    assert resumed == 0, log.read_text()[-2000:]
    expected, got = (load_file(tmp_path / which / "adapter.safetensors") for which in ("whole", "cut"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert any(float(value.abs().max()) > 1e-3 for key, value in got.items() if "lora_up" in key)  # it was trained
    states = [load_state(list_checkpoints(tmp_path / which / "checkpoints")[-1]) for which in ("whole", "cut")]
    assert same(states[0]["algorithm"], states[1]["algorithm"])
    timing = "samples_per_second"
    histories = [[{k: v for k, v in row.items() if k != timing} for row in state["history"]] for state in states]
    assert histories[0] == histories[1] and len(histories[0]) == 5


def test_stopped_before_the_first_checkpoint_and_resumed_is_a_run_from_the_start(tiny_sd: Path, tmp_path: Path) -> None:
    log, cut = tmp_path / "log", tmp_path / "cut"
    fate = Fate(environment={"KILL_AT": "2", "COUNT_IN": str(tmp_path / "calls")})
    assert run(command(tiny_sd, cut), cut, fate, log) == -9
    assert (cut / "config.yaml").exists() and not (cut / "checkpoints").exists()
    resumed = run(["--output", str(cut), "--resume"], cut, Fate(), log)  # the rewards are in the run's config.yaml
    assert resumed == 0, log.read_text()[-2000:]
    assert "holds no checkpoint yet: the run starts anew" in log.read_text()
    (state,) = (load_state(path) for path in list_checkpoints(cut / "checkpoints")[-1:])
    assert state["iteration"] == len(state["history"]) == 5


@pytest.mark.parametrize("name", ["dpok", "ddpo", "rwr", "draft"])
def test_a_checkpoint_of_version_0_1_is_resumed(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    """It holds the state of the algorithm beside that of the run."""

    def trained(folder: str, iterations: int, resume: bool = False) -> dict[str, torch.Tensor]:
        config = settings(
            tmp_path / folder,
            name,
            resume=resume,
            sampling={"steps": 3, "samples": 8, "batch": 4},
            algorithm={"buffer": 16, "updates": 2, "kl_weight": 0.5, "statistics_minimum": 2},
            value={"batch": 8},
            run={"iterations": iterations, "save_every": 2},
        )
        trainer = tiny_trainer(tiny_sd, config)
        trainer.run()
        return {key: value.detach().clone() for key, value in trainer.context.model.trainable().items()}

    whole = trained("whole", 4)
    trained("cut", 2)
    (checkpoint,) = list_checkpoints(tmp_path / "cut" / "checkpoints")
    state = load_state(checkpoint)
    older = state | state.pop("algorithm")
    save_checkpoint(checkpoint.parent, 2, older, b"adapter", keep=1)
    resumed = trained("cut", 4, resume=True)
    assert same(whole, resumed)


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"iteration": 1}, b"adapter", keep=2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"iteration": 2}, b"adapter", keep=2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert load_state(list_checkpoints(tmp_path)[-1]) == {"iteration": 1}


def test_a_kill_in_the_middle_of_writing_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"iteration": 1}, b"adapter", keep=2)
    half = tmp_path / "checkpoint-00000002.partial"
    half.mkdir()
    (half / checkpoints.STATE).write_bytes(b"half a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-00000001"]
    save_checkpoint(tmp_path, 2, {"iteration": 2}, b"adapter", keep=2)  # and the leftover is cleared away
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000001", "checkpoint-00000002"]


def test_old_checkpoints_go(tmp_path: Path) -> None:
    for iteration in range(1, 6):
        save_checkpoint(tmp_path, iteration, {"iteration": iteration}, b"adapter", keep=2)
    assert [load_state(path)["iteration"] for path in list_checkpoints(tmp_path)] == [4, 5]


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    folder = save_checkpoint(tmp_path, 1, {"iteration": Trap()}, b"adapter", keep=1)
    with pytest.raises(ValueError, match=r"state\.pt is damaged, or holds more than tensors, which could run code"):
        load_state(folder)
    assert not (tmp_path / "sprung").exists()


def test_processes_of_an_older_checkpoint_draw_different_numbers() -> None:
    """It has the generators of the first process alone."""
    torch.manual_seed(5)
    older = {"random": random_state(), "iteration": 3, "config": {"run": {"seed": 0}}}
    expected = torch.rand(4)
    drawn = []
    for rank in (0, 1, 2, 1):
        restore_random_state(older, rank)
        drawn.append((torch.rand(4).tolist(), random.random(), float(np.random.rand())))
    assert drawn[0][0] == expected.tolist()
    assert drawn[1] == drawn[3]
    assert all(drawn[i][k] != drawn[j][k] for i, j in ((0, 1), (0, 2), (1, 2)) for k in range(3))


def test_a_run_is_resumed_with_fewer_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {"random": random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 4}}
    given: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append(device))
    restore_random_state(saved, 0)
    assert given == [0, 1]


def test_collapse_keeps_the_last_good_adapter(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusion_blend.training.adapter_optimizer import TrainingCollapsed

    small = {"steps": 3, "samples": 8, "batch": 8}
    config = settings(
        tmp_path / "run",
        sampling=small,
        algorithm={"buffer": 16, "kl_weight": 0.0, "clip_range": 100.0},
        optimizer={"learning_rate": 1.0},
        value={"batch": 8},
        run={"iterations": 20, "stop_kl": 0.5},
    )
    trainer = tiny_trainer(tiny_sd, config)
    with pytest.raises(TrainingCollapsed, match=r"KL .* is above 0.5 .*last good adapter is .*adapter.safetensors"):
        trainer.run()
    adapter = load_file(tmp_path / "run/adapter.safetensors")
    assert all(bool(value.isfinite().all()) for value in adapter.values())
    assert 0 < len(trainer.state.history) < 20
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") == len(trainer.state.history) + 1


def test_a_loss_that_is_not_finite_stops(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusion_blend.training.adapter_optimizer import TrainingCollapsed

    config = settings(
        tmp_path / "run",
        sampling={"steps": 3, "samples": 4, "batch": 4},
        algorithm={"buffer": 8},
        value={"batch": 8},
        run={"iterations": 3},
    )
    trainer = tiny_trainer(tiny_sd, config)
    with torch.no_grad():
        trainer.algorithm.value.value.return_std.fill_(float("nan"))
        trainer.algorithm.value.value.return_mean.fill_(1.0)
    with pytest.raises(TrainingCollapsed, match="policy loss is nan"):
        trainer.run()
    adapter = load_file(tmp_path / "run/adapter.safetensors")
    assert all(bool(value.isfinite().all()) for value in adapter.values())
