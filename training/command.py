"""``diffusion-blend train``: the command line; torch and diffusers are imported when the settings have been read."""

from __future__ import annotations

import itertools
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.command_line import CommandFailed, parse_settings, run_command
from .algorithms import entry_of
from .checks import check_run
from .config import TrainConfig
from .presets import preset_names, read_preset
from .resume import RENAMED, flat, recorded_run, recorded_settings

logger = logging.getLogger("diffusion_blend")


_SWITCHES = ("--resume", "--allow_download", "--base.gradient_checkpointing", "--normalise_rewards")


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Read settings from the command line; see `parse_settings`.

    The defaults are those of the algorithm's preset, over them those of the base's preset. A resumed run takes its own
    settings as defaults instead.

    Raises:
        ValueError: an unknown preset, or a damaged record of the run that is resumed.
    """
    chosen = _parse(arguments, {"rewards": {}})  # which a resumed run need not give again
    return _parse(arguments, _defaults(chosen))


def _parse(arguments: Sequence[str], defaults: dict[str, Any]) -> TrainConfig:
    return parse_settings(
        TrainConfig,
        "train",
        "Fine-tune a LoRA adapter of a text-to-image base against a reward, under a KL penalty to the base model.",
        arguments,
        switches=_SWITCHES,
        renamed=RENAMED,
        defaults=defaults,
    )


def _defaults(chosen: TrainConfig) -> dict[str, Any]:
    own = recorded_run(Path(chosen.output)) if chosen.resume else None
    if own is not None:
        return {name: value for name, value in recorded_settings(own).items() if name not in ("output", "resume")}
    entry_of(chosen.algorithm.name)
    layers = [read_preset(chosen.algorithm.name)]
    layers += [read_preset(chosen.preset)] if chosen.preset else []
    return {name: value for layer in layers for name, value in flat(layer)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--preset=list" in words or ("--preset", "list") in itertools.pairwise(words):
        sys.stdout.write("\n".join(preset_names()) + "\n")
        return 0
    return run_command("train", lambda: _train(parse(words)))


def _train(config: TrainConfig) -> None:
    checked = check_run(config)
    from ..rewards.guarded import RewardFailed
    from .adapter_optimizer import TrainingCollapsed
    from .launch import launch

    try:
        path = launch(checked)
    except RewardFailed as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # the author of the reward needs the line
        raise CommandFailed(str(error)) from error
    except TrainingCollapsed as error:
        raise CommandFailed(str(error)) from error
    sys.stdout.write(f"{path}\n")
