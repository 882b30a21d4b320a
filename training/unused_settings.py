"""Settings that were given and have no effect on the run, because its algorithm or another setting does not use them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .presets import read_preset
from .resume import flat

logger = logging.getLogger("diffusion_blend")

USERS = {
    "algorithm.kl_weight": ("dpok", "grpo", "nft", "rwr", "draft"),
    "algorithm.kl_in_return": ("dpok",),
    "algorithm.clip": ("dpok", "ddpo", "grpo"),
    "algorithm.clip_range": ("dpok", "ddpo", "grpo"),
    "algorithm.buffer": ("dpok", "rwr"),
    "algorithm.updates": ("dpok", "rwr", "nft"),
    "algorithm.control_variate": ("rwr",),
    "algorithm.recompute": ("draft",),
    "algorithm.draft_steps": ("draft",),
    "algorithm.draft_noises": ("draft",),
    "algorithm.epochs": ("ddpo", "grpo"),
    "algorithm.statistics_window": ("dpok", "ddpo"),
    "algorithm.statistics_minimum": ("ddpo",),
    "algorithm.advantage_clip": ("ddpo", "grpo"),
    "algorithm.group": ("grpo", "nft"),
    "algorithm.nft_strength": ("nft",),
    "algorithm.nft_spread": ("nft",),
    "algorithm.nft_decay": ("nft",),
    "value.updates": ("dpok",),
    "value.batch": ("dpok",),
    "value.learning_rate": ("dpok",),
    "value.hidden": ("dpok",),
    "sampling.pool": ("rwr",),
    "sampling.window_steps": ("dpok", "ddpo", "grpo", "nft"),
    "normalise_rewards": ("dpok", "ddpo", "rwr", "draft"),
    "run.stop_kl": ("dpok", "grpo", "draft"),
}
"""Setting -> the algorithms that use it. Every other setting is used by all."""


def _has_own_base(config: TrainConfig) -> bool:
    return ":" in config.base.path and not Path(config.base.path).exists()


IDLE: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    **{
        f"value.{name}": (lambda config: config.value.updates == 0, "value.updates is 0")
        for name in ("batch", "learning_rate", "hidden")
    },
    "run.stop_kl": (
        lambda config: config.algorithm.name == "grpo" and config.algorithm.kl_weight == 0,
        "grpo measures no KL where algorithm.kl_weight is 0",
    ),
    "sampling.negative_prompt": (
        lambda config: config.sampling.guidance_scale == 1,
        "sampling.guidance_scale 1 is no guidance",
    ),
    "optimizer.decay_iterations": (
        lambda config: config.optimizer.schedule == "constant",
        "optimizer.schedule is constant",
    ),
    "rewards_end_iteration": (lambda config: not config.rewards_end, "rewards_end is empty"),
    "run.watch_samples": (lambda config: config.run.watch_every == 0, "run.watch_every is 0"),
    "heldout": (lambda config: config.run.watch_every == 0, "run.watch_every is 0"),
    "prompts.seed": (
        lambda config: config.prompts.source != "geneval" and config.prompts.count == 0,
        "prompts.count 0 takes all prompts",
    ),
    "base.config": (
        lambda config: not config.base.path.endswith(".safetensors"),
        "base.path is no single checkpoint",
    ),
    "base.precision": (
        lambda config: _has_own_base(config) and config.base.precision == "bf16",
        "base.path is a function of your own, which chooses its precision",
    ),
}
"""Setting -> when another setting leaves it without effect, and the reason in words."""


def unused_settings(config: TrainConfig) -> dict[str, str]:
    """The settings that were given and have no effect.

    A setting counts as given if its value is neither the default nor that of a preset of the run.

    Args:
        config: the settings.

    Returns:
        Dotted name -> the reason in words.
    """
    name = config.algorithm.name
    reasons = {setting: f"only for {', '.join(users)}" for setting, users in USERS.items() if name not in users}
    reasons |= {
        setting: reason for setting, (is_idle, reason) in IDLE.items() if setting not in reasons and is_idle(config)
    }
    given = _given(config)
    return {setting: reason for setting, reason in reasons.items() if setting in given}


def _given(config: TrainConfig) -> dict[str, Any]:
    usual = [dataclasses.asdict(TrainConfig("", {})), read_preset(config.algorithm.name)]
    usual += [read_preset(config.preset)] if config.preset else []
    known = [dict(flat(settings)) for settings in usual]
    now = dict(flat(dataclasses.asdict(config)))
    return {name: value for name, value in now.items() if value not in [each[name] for each in known if name in each]}


def warn_of_unused(config: TrainConfig) -> None:
    """Write a warning that names the settings without effect, if there are any."""
    unused = unused_settings(config)
    if unused:
        named = "; ".join(f"{setting} ({reason})" for setting, reason in unused.items())
        logger.warning(
            "These settings have no effect with algorithm.name %s: %s. Leave them out, or choose another algorithm.name",
            config.algorithm.name,
            named,
        )
