"""``diffusion-blend sweep``: from the command line or YAML to tables and figures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from ...artifacts.command_line import parse_settings, run_command
from .checks import check_config, check_files, mirror_of
from .config import SweepConfig

logger = logging.getLogger("diffusion_blend")

RENAMED = {"images": "images_per_point"}
"""Earlier spellings of settings, which are still accepted."""


def parse(arguments: Sequence[str]) -> SweepConfig:
    """Read settings from the command line; see `parse_settings`."""
    description = "Compare methods of blending adapters over preference weights, prompts and seeds."
    return parse_settings(SweepConfig, "sweep", description, arguments, switches=("--allow_download",), renamed=RENAMED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    config = parse(sys.argv[1:] if arguments is None else arguments)
    return run_command("sweep", lambda: _sweep(config))


def _sweep(config: SweepConfig) -> None:
    check_config(config)  # before torch is imported
    check_files(config)
    from ...artifacts.workers import Worker
    from .prepare import prepare
    from .report import write_report

    worker, mirror = Worker.of_environment(), mirror_of(config)
    if mirror is not None:
        mirror.fetch()
    sweep = prepare(config if mirror is None else replace(config, output=str(mirror.folder), work_folder=""), worker)
    rows = sweep.run()
    if worker.is_first:
        report = write_report(sweep, rows)
        if mirror is not None:
            mirror.upload()
        sys.stdout.write(f"{report}\n{config.output}\n")
