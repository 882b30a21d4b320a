"""A training run, from its settings to an adapter file.

This file imports no library that takes long to load, so that refusals are quick.
"""

from __future__ import annotations

from pathlib import Path

from .checks import check_run
from .config import TrainConfig


def train(config: TrainConfig) -> Path:
    """Run a training from its settings.

    Args:
        config: everything; see ``TrainConfig``.

    Returns:
        The adapter file; with an adapter for each reward the folder that holds their files.

    Raises:
        ValueError: a setting, base, reward, prompt source or folder that cannot work, before any work is done.
        TrainingCollapsed: training went off; the last good adapter is in the output folder.
        RewardFailed: a reward raised, or took longer than ``reward_timeout``.
    """
    checked = check_run(config)
    from .launch import launch  # loads torch, diffusers and the rest

    return launch(checked)
