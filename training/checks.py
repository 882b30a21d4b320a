"""Refusals of settings that cannot work, before anything is loaded."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.settings import check_bounds
from ..rewards.catalogue import check_names
from .algorithms import ALGORITHMS, AlgorithmEntry, entry_of
from .config import BaseConfig, TrainConfig
from .noisy_steps import noisy_range
from .prompts import load_prompts
from .resume import check_folder

TRACKERS = ("tensorboard", "wandb")
"""The trackers of accelerate that work without a network."""


@dataclass(frozen=True)
class CheckedRun:
    """A run whose settings can work, with what the check has read.

    Attributes:
        config: the settings.
        algorithm: the entry of ``config.algorithm.name``.
        prompts: the prompts of ``config.prompts``.
    """

    config: TrainConfig
    algorithm: AlgorithmEntry
    prompts: list[str]


def check_run(config: TrainConfig) -> CheckedRun:
    """Check everything that can be checked before a library or a model is loaded.

    Args:
        config: the settings.

    Raises:
        ValueError: a setting, a reward's name, the prompts or the output folder cannot work.
    """
    checked = check_config(config)
    check_names([*config.rewards, *config.heldout])
    check_folder(config)
    return checked


def check_config(config: TrainConfig) -> CheckedRun:
    """Find contradictions and impossible values.

    Args:
        config: the settings.

    Raises:
        ValueError: naming the setting, the value and a way out.
    """
    check_bounds(config)
    check_quantisation(config.base)
    _check_rewards(config)
    _check_schedules(config)
    _check_trackers(config.run.trackers)
    sampling = config.sampling
    if sampling.samples % sampling.batch:
        raise ValueError(f"sampling.samples {sampling.samples} is not a multiple of sampling.batch {sampling.batch}")
    entry = entry_of(config.algorithm.name)
    _check_stacked(config)
    noisy = noisy_range(sampling.noisy_steps, sampling.steps, auto=entry.window)
    count = min(sampling.window_steps or len(noisy), len(noisy))
    prompts = load_prompts(config.prompts.source, config.prompts.count, config.prompts.seed)
    for requirement in entry.requirements:
        requirement(config, count, len(prompts))
    return CheckedRun(config, entry, prompts)


def check_quantisation(base: BaseConfig) -> None:
    """Check that the base's quantisation and its split over processes can be had.

    Raises:
        ValueError: bitsandbytes is not installed, the base is a single file or a function, or it is to be both quantised and
            split.
    """
    own = ":" in base.path and not Path(base.path).exists()
    if base.shard and own:
        raise ValueError(f"base.shard splits bases that this trainer reads, and {base.path} is a function of your own")
    if base.quantise == "none":
        return
    if base.shard:
        raise ValueError(
            "base.shard and base.quantise do not go together: quantised weights cannot be split; choose one"
        )
    if base.path.endswith(".safetensors") or own:
        raise ValueError(f"base.quantise {base.quantise}: {base.path} must be a hub id or a diffusers folder for it")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"base.quantise {base.quantise}: the package bitsandbytes is not installed; "
            "run pip install bitsandbytes, or set base.quantise to none"
        )


def _check_schedules(config: TrainConfig) -> None:
    optimizer = config.optimizer
    if optimizer.schedule != "constant" and not optimizer.decay_iterations:
        raise ValueError(
            f"optimizer.schedule {optimizer.schedule} needs optimizer.decay_iterations, the iterations until it reaches 0 "
            f"(run.iterations is {config.run.iterations})"
        )
    unknown = sorted(set(config.rewards_end) - set(config.rewards))
    if unknown:
        raise ValueError(f"rewards_end names {unknown[0]!r}, which is not among the rewards {list(config.rewards)}")
    if config.rewards_end and not config.rewards_end_iteration:
        raise ValueError("rewards_end needs rewards_end_iteration, the iteration at which these weights are reached")
    if config.adapter.start and not Path(config.adapter.start).exists():
        raise ValueError(f"adapter.start {config.adapter.start!r}: no such file or folder")


def _check_trackers(names: list[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"run.trackers has {name!r}: choose from {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"run.trackers has {name!r}, which is not installed: run pip install {name}, or leave it out"
            )


def _check_stacked(config: TrainConfig) -> None:
    algorithm = config.algorithm
    if not algorithm.adapter_per_reward:
        return
    if algorithm.stacked and algorithm.separate:
        raise ValueError(
            "algorithm.stacked and algorithm.separate are both true: stacked trains adapters for all mixtures, separate each "
            "for its reward alone; set one of them to false"
        )
    name, setting = algorithm.name, "algorithm.stacked" if algorithm.stacked else "algorithm.separate"
    because = ALGORITHMS[name].not_stacked
    if because:
        able = ", ".join(other for other, entry in ALGORITHMS.items() if not entry.not_stacked)
        raise ValueError(
            f"{setting}: {name} cannot train several adapters at once, because {because}: take one of {able}"
        )
    if len(config.rewards) < 2:
        raise ValueError(
            f"{setting} trains one adapter for each reward, and there is only {', '.join(config.rewards)}: give at "
            f"least two rewards, or leave {setting} out"
        )
    if config.adapter.start:
        raise ValueError(f"{setting} trains a new adapter for each reward: leave adapter.start out")
    for reward, weight in config.rewards.items():
        if weight == 0:
            raise ValueError(
                f"{setting}: the weight of reward {reward!r} is 0, so its adapter would learn nothing: the weight is "
                "the reward's scale there, 1 as it is"
            )


def _check_rewards(config: TrainConfig) -> None:
    if not config.rewards:
        raise ValueError("no rewards: give at least one, e.g. --rewards.image_reward 1")
    for name, weight in [*config.rewards.items(), *config.rewards_end.items()]:
        if not math.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} is {weight}: it must be a finite number")
    if all(weight == 0 for weight in config.rewards.values()):
        raise ValueError(f"all weights of {list(config.rewards)} are 0: nothing would be trained")
    twice = sorted(set(config.rewards) & set(config.heldout))
    if twice:
        raise ValueError(f"{', '.join(twice)} is both trained and held out: a trained reward cannot watch itself")
