"""Checks a run's output folder, and chooses the checkpoint that a run resumes.

accelerate's ``load_state`` loads any checkpoint into any run. These checks refuse a checkpoint of other settings, because
the resumed run would not end as the uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..artifacts.files import check_folder as check_writable
from .config import TrainConfig

logger = logging.getLogger("diffusion_blend")

SETTINGS = "config.yaml"
"""The file in a run's folder that records its settings."""

ADDED = {
    "sampling.noisy_steps": "all",
    "sampling.window_steps": 0,
    "algorithm.group": 8,
    "algorithm.nft_strength": 1.0,
    "algorithm.nft_spread": 1.0,
    "algorithm.nft_decay": 0.5,
    "preset": "",
    "algorithm.draft_steps": 0,
    "algorithm.draft_noises": 1,
    "base.quantise": "none",
    "base.shard": False,
    "base.frames": 1,
    "adapter.start": "",
    "sampling.negative_prompt": "",
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "optimizer.decay_iterations": 0,
    "prompts.cache": "",
    "run.ema": 0.0,
    "run.trackers": ["tensorboard"],
    "rewards_end": {},
    "rewards_end_iteration": 0,
    "normalise_rewards": False,
    "algorithm.stacked": False,
    "algorithm.separate": False,
}
"""Settings that older checkpoints do not have -> the value with which the older version ran."""

RENAMED = {"algorithm.take_off_base_error": "algorithm.control_variate"}
"""Earlier names of settings -> the present ones."""

CHANGEABLE = (
    "output",
    "preset",
    "resume",
    "allow_download",
    "heldout",
    "reward_folders",
    "reward_timeout",
    "base.gradient_checkpointing",
    "base.shard",
    "run.iterations",
    "run.save_every",
    "run.keep",
    "run.watch_every",
    "run.watch_samples",
    "run.stop_kl",
    "run.stop_diversity",
    "run.trackers",
    "prompts.cache",
)
"""Settings that may change when a run is resumed, because the adapter does not depend on them."""


def check_folder(config: TrainConfig) -> None:
    """Check that the run's folder can be written, and that it is new if the run is.

    Raises:
        ValueError: the folder cannot be written, or it is not empty and resuming was not asked for.
    """
    folder = Path(config.output)
    check_writable(folder)
    if not config.resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"output {folder} already exists: give another one, or --resume true, which goes on with the run in it, or starts it "
            "anew if it has no checkpoint yet"
        )


def check_resumed(config: TrainConfig, processes: int) -> None:
    """Check that the run in the folder can go on, or start anew where it has no checkpoint yet.

    Args:
        config: the settings.
        processes: the number of processes.

    Raises:
        ValueError: the run was begun with other settings, or a new one would overwrite what is in the folder.
    """
    from .checkpoints import load_state  # loads torch

    folder = Path(config.output)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        _check_begun(folder)
        logger.warning("%s holds no checkpoint yet: the run starts anew", folder)
        _check_settings(config, recorded_run(folder) or dataclasses.asdict(config))
        return
    saved = load_state(checkpoint)
    if saved["processes"] != processes:
        raise ValueError(
            f"the run in {folder} had {saved['processes']} processes, now there are {processes}: "
            "resume with the same number"
        )
    _check_settings(config, saved["config"])


def _check_begun(folder: Path) -> None:
    """Refuse a folder without a checkpoint that a new run would overwrite."""
    finished = sorted(folder.glob("*.safetensors"))
    if finished:
        raise ValueError(
            f"nothing to resume: {folder} holds {finished[0].name} and no checkpoint. To start anew give another output folder, "
            "or move that file away"
        )
    # A kill while the record was written leaves a partial file.
    left = [path for path in folder.glob("*") if not path.name.endswith(".partial")]
    if left and not (folder / SETTINGS).is_file():
        raise ValueError(
            f"nothing to resume: {folder} is not empty and holds no run (no {SETTINGS}): give another folder"
        )


def _check_settings(config: TrainConfig, recorded: Mapping[str, Any]) -> None:
    before, now = recorded_settings(recorded), dict(flat(dataclasses.asdict(config)))
    changed = [name for name in sorted(before | now) if name not in CHANGEABLE and before.get(name) != now.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
        raise ValueError(
            f"cannot resume {config.output} with other settings ({differences}): "
            "set them back, or start a new run in another output folder"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run, None if it has none yet. Damaged ones are skipped with a warning.

    Raises:
        DamagedCheckpoint: all are damaged.
    """
    from .checkpoints import newest_whole  # loads torch

    return newest_whole(folder / "checkpoints")


def recorded_run(folder: Path) -> dict[str, Any] | None:
    """The settings that a run was begun with, as its folder records them; None where there is no record.

    Raises:
        ValueError: the record is damaged.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the settings of the run in {file}: {error}") from error
    if not isinstance(recorded, dict):
        raise ValueError(f"cannot read the settings of the run in {file}: it is no mapping of settings")
    return recorded


def recorded_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that an older version may have recorded, by their present dotted names."""
    return ADDED | {RENAMED.get(name, name): value for name, value in flat(config)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, dict) and name not in ("rewards", "rewards_end", "reward_folders"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
