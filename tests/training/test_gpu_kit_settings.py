"""The GPU kit's trainings: the trainer takes all their settings, so that no minute on a GPU ends with a refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

KIT = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def kit(monkeypatch):
    """The kit's folder on the path; its modules are forgotten afterwards, because their names are common ones."""
    monkeypatch.syspath_prepend(str(KIT))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if str(KIT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", ["alignment", "set-2", "oracles"])
def test_the_trainer_accepts_the_settings_of_every_long_training(kit, monkeypatch, tmp_path, name, tiny):
    import long_trainings
    from diffusion_blend.training import train
    from diffusion_blend.training.algorithms import ALGORITHMS
    from diffusion_blend.training.checks import check_config

    class Accepted(Exception):
        """In place of the training itself."""

    def check(config):
        check_config(config)
        raise Accepted

    monkeypatch.setattr(train, "train", check)
    wanted = long_trainings.trainings(name)
    assert {training.settings.get("algorithm.name", "draft") for training in wanted} <= set(ALGORITHMS)
    assert len({training.name for training in wanted}) == len(wanted) > 2
    for training in wanted[:6]:
        with pytest.raises(Accepted):
            long_trainings.train_one(training.mixture, tmp_path, long_trainings.words(training.settings, tiny=tiny))


@pytest.mark.parametrize("name", ["draft-sd15", "dpok-sd15", "draft-sdxl", "grpo-sd15"])
def test_the_trainer_accepts_the_settings_of_every_case(kit, monkeypatch, tmp_path, name):
    monkeypatch.syspath_prepend(str(KIT.parent))
    import records
    import trainer
    from diffusion_blend.training.algorithms import ALGORITHMS

    case = trainer.CASES[name]
    assert case.algorithm in ALGORITHMS
    settings = trainer.settings_of(case, records.Records(tmp_path / "results.jsonl", name))
    assert settings.algorithm.name == case.algorithm
    trainer.small(settings)
