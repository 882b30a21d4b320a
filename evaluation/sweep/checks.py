"""Refusals of a sweep's settings, before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from ...artifacts.files import check_folder
from ...artifacts.settings import check_bounds
from ...rewards.catalogue import check_names
from .config import SweepConfig
from .methods import METHODS

RESERVED = {
    "method", "kl_scale", "image", "prompt", "number", "kl", "seconds", "calls", "kl_calls", "r(w)", "settings", "recipe",
    "picture",
}  # fmt: skip
"""Columns of the table of samples, which no adapter and no reward can have as its name."""


def check_config(config: SweepConfig) -> None:
    """Find impossible and contradictory settings.

    Raises:
        ValueError: naming the setting, the value and a way out.
    """
    check_bounds(config)
    if not math.isfinite(config.guidance_scale):
        raise ValueError(f"guidance_scale is {config.guidance_scale}: it must be a finite number")
    if not config.adapters or not config.rewards or not config.methods:
        raise ValueError("a sweep needs at least one adapter, one reward and one method")
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    check_names(list(config.rewards.values()))
    _check_names(config)
    for method in config.methods:
        unscored = [name for name in config.adapters if name not in config.rewards]
        if METHODS[method].follows_rewards and unscored:
            raise ValueError(
                f"{method} follows the rewards, and there is none named {unscored[0]!r} as that adapter is"
            )
    for file in config.external_scores:
        if not Path(file).is_file():
            raise ValueError(f"external_scores {file!r}: no such file")
    check_folder(Path(config.output))


def _check_names(config: SweepConfig) -> None:
    for name in [*config.rewards, *config.adapters]:
        if name in RESERVED or name.startswith("w_"):
            raise ValueError(f"the name {name!r} is taken by a column of the table: choose another")
    for name in config.etas:
        if name not in config.adapters:
            raise ValueError(f"etas names {name!r}, which is none of the adapters {list(config.adapters)}")
    if config.stacked and set(config.stacked) != set(config.adapters):
        raise ValueError(
            f"stacked names {list(config.stacked)}, but the adapters are {list(config.adapters)}: give a file of the group for "
            "each adapter's name"
        )
    for name in config.method_weights:
        if name not in config.methods:
            raise ValueError(f"method_weights names {name!r}, which is none of the methods {config.methods}")
    for name, numbers in config.affine.items():
        if name not in config.rewards or len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] == 0:
            raise ValueError(
                f"affine.{name} is {numbers}: give a reward's name and two numbers, a factor that is not 0 and an offset"
            )
    for name in config.reward_folders:
        if name not in config.rewards.values():
            raise ValueError(
                f"reward_folders names {name!r}, which is not among the rewards {list(config.rewards.values())}"
            )
