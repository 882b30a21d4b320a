"""``diffusion-blend sweep``: from the command line or YAML to tables and figures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ...artifacts.command_line import parse_settings
from .config import SweepConfig
from .report import write_report
from .run import prepare

logger = logging.getLogger("diffusion_blend")


def parse(arguments: Sequence[str]) -> SweepConfig:
    """Read settings from the command line; see `parse_settings`."""
    description = "Compare methods of blending adapters over preference weights, prompts and seeds."
    return parse_settings(SweepConfig, "sweep", description, arguments, switches=("--allow_download",))


def launched() -> PartialState:
    """This process among those that the launcher started.

    Raises:
        ValueError: the launcher started several, and they would not know of each other.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if (
        state.num_processes != count
    ):  # accelerate connects processes on a GPU, or on the CPU if it is set to use the CPU
        raise ValueError(
            f"{count} processes were launched, and each would do the whole sweep: without a GPU, set "
            "ACCELERATE_USE_CPU=true"
        )
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    config = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        state = launched()
        sweep = prepare(config, state)
        rows = sweep.run(state)
        if state.is_main_process:
            sys.stdout.write(f"{write_report(sweep, rows)}\n{config.output}\n")
        state.destroy_process_group()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"diffusion-blend sweep: {error}\n")
        return 1
    return 0
