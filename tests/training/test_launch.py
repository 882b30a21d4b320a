"""What a run gets from its settings before it begins: the names of its rewards, and the patience of its processes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusion_blend.training import launch
from diffusion_blend.training.algorithms import entry_of
from diffusion_blend.training.checks import CheckedRun
from diffusion_blend.training.monitoring import captions
from diffusion_blend.training.stacking import member_metadata
from training_runs import PROMPTS, settings

BOTH = {"a:reward": 1.0, "b:reward": 2.0}
"""Two rewards of one's own whose functions have the same name."""


def test_metadata_have_every_reward(tmp_path: Path) -> None:
    base: Any = SimpleNamespace(architecture="sd_v1", name="base", resolution=(64, 64), scheduler={})
    header = launch._metadata(settings(tmp_path, rewards=BOTH), base, True)
    assert json.loads(header["diffusion_blend.reward"]) == BOTH
    assert (
        launch._metadata(settings(tmp_path, rewards={"a:reward": 1.0}), base, True)["diffusion_blend.reward"]
        == "reward"
    )


def test_captions_have_every_reward() -> None:
    scores = {name: torch.full((1,), score) for name, score in BOTH.items()}
    assert captions(["a cat"], scores) == ["a cat\na:reward 1\nb:reward 2"]


@pytest.mark.parametrize("kind", ["stacked", "separate"])
def test_members_have_names_of_their_own(kind: str, tmp_path: Path) -> None:
    config = settings(tmp_path, rewards=BOTH, algorithm={kind: True})
    names = [member_metadata({}, config, member, 0)["diffusion_blend.reward"] for member in (0, 1)]
    assert names == list(BOTH)


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [(3600.0, timedelta(hours=3)), (1.0, timedelta(minutes=30)), (0.0, timedelta(days=30))],
)
def test_processes_wait_for_rewards_that_are_within_their_limit(
    limit: float, wanted: timedelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rewards are scored one after the other while the other processes wait."""
    given: list[timedelta | None] = []

    def stop(*, kwargs_handlers: list[Any], **_: Any) -> None:
        given.extend(handler.timeout for handler in kwargs_handlers)
        raise InterruptedError

    monkeypatch.setattr(launch, "Accelerator", stop)
    config = settings(tmp_path, reward_timeout=limit, heldout=["colourfulness"])
    with pytest.raises(InterruptedError):
        launch.launch(CheckedRun(config, entry_of("dpok"), PROMPTS))
    assert given == [wanted]
