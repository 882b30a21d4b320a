"""``diffusion-blend train``: the command line; torch and diffusers are imported when the settings have been read."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..artifacts.command_line import CommandFailed, parse_settings, run_command
from ..artifacts.files import check_folder
from ..artifacts.settings import check_bounds
from ..rewards.catalogue import check_names
from .config import TrainConfig

logger = logging.getLogger("diffusion_blend")


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Read settings from the command line; see `parse_settings`."""
    return parse_settings(
        TrainConfig,
        "train",
        "Fine-tune a LoRA adapter of a text-to-image base against a reward, under a KL penalty to the base model.",
        arguments,
        switches=("--resume", "--allow_download", "--base.gradient_checkpointing"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    config = parse(sys.argv[1:] if arguments is None else arguments)
    return run_command("train", lambda: _train(config))


def _train(config: TrainConfig) -> None:
    check_bounds(config)
    check_names([*config.rewards, *config.heldout])
    check_folder(Path(config.output))
    from ..rewards.guarded import RewardFailed
    from .adapter_optimizer import TrainingCollapsed
    from .train import train

    try:
        path = train(config)
    except RewardFailed as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # the author of the reward needs the line
        raise CommandFailed(str(error)) from error
    except TrainingCollapsed as error:
        raise CommandFailed(str(error)) from error
    sys.stdout.write(f"{path}\n")
