"""The base's samples are made once for any number of rewards, and never taken for those of other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian_model import GaussianModel
from training_runs import make_trainer, settings


def trainer(tmp_path: Path, name: str, gradient: float, mean: float = 0.5, **over: Any) -> Any:
    config = settings(
        tmp_path / name,
        "rwr",
        rewards={"known": 1.0},
        sampling={"steps": 4, "samples": 64, "batch": 32, "pool": str(tmp_path / "pool"), **over},
        algorithm={"kl_weight": 1.0, "buffer": 1000, "updates": 3},
        run={"iterations": 2, "stop_diversity": 0.0, "seed": 0},
    )
    return make_trainer(
        config, GaussianModel(mean, 0.6), {"known": lambda images, _: gradient * images[:, 0, 0, 0].double()}, ["x"]
    )


def weights(found: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in found.context.model.trainable().items()}


def test_a_second_reward_needs_no_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, "first", 1.0).run()
    alone = trainer(tmp_path, "alone", -2.0, pool="")
    alone.run()
    second = trainer(tmp_path, "second", -2.0)
    calls = sampling_calls(second, monkeypatch)
    second.run()
    assert not calls
    for name, tensor in weights(alone).items():  # and learns what it would have learnt from its own
        assert torch.equal(weights(second)[name], tensor)
    assert len(list((tmp_path / "pool").iterdir())) == 2


def sampling_calls(found: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the calls of the sampler, which still samples."""
    calls: list[Any] = []
    sample = found.algorithm.collector.sample
    monkeypatch.setattr(
        found.algorithm.collector, "sample", lambda *given, **named: calls.append(given) or sample(*given, **named)
    )
    return calls


@pytest.mark.parametrize("other", [{"steps": 5}, {"eta": 0.5}, {"samples": 32}, {"mean": 0.9}])
def test_another_sampling_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    trainer(tmp_path, "first", 1.0).run()
    with pytest.raises(ValueError, match="was made with other settings"):
        trainer(tmp_path, "second", 1.0, **other).run()


def test_the_network_batch_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, "first", 1.0).run()
    second = trainer(tmp_path, "second", 1.0, batch=64)
    calls = sampling_calls(second, monkeypatch)
    second.run()
    assert not calls


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_split_base_samples_on_all_processes_or_on_none(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``share`` of the processes have their file. One that has its file must still run the split network with the others."""
    trainer(tmp_path, "first", 1.0).run()
    second = trainer(tmp_path, "second", 1.0)
    calls, mean = sampling_calls(second, monkeypatch), second.context.processes.mean
    monkeypatch.setattr(
        second.context.processes, "mean", lambda values: {"found": share} if "found" in values else mean(values)
    )
    second.run()
    assert len(calls) == (0 if share == 1 else 2)  # iterations


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    trainer(tmp_path, "first", 1.0).run()
    file = sorted((tmp_path / "pool").iterdir())[0]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read"):
        trainer(tmp_path, "second", 1.0).run()
