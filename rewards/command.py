"""``diffusion-blend score``: images and prompts to a table of rewards."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..artifacts.command_line import parse_settings, run_command
from ..artifacts.files import check_file
from ..artifacts.settings import bounded, check_bounds
from .catalogue import CATALOGUE, check_names

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ScoreConfig:
    """Score images with rewards.

    Attributes:
        images: picture files, or one folder (its pictures in the order of their names).
        prompts: text file with one prompt per picture, in the same order; or one line for all of them.
        rewards: reward names, as in training.
        output: CSV file to write; empty only prints the table. An earlier table of this command is replaced, any other file is
            refused. An interrupted run goes on where it stopped, and processes that are started with the same settings share
            the work.
        reward_folders: name -> local folder with that reward's model.
        allow_download: permit downloads of reward models that are not on this machine yet.
        batch: pictures scored at a time. Larger is faster until memory ends; pictures of other sizes go separately.
    """

    images: list[str]
    prompts: str
    rewards: list[str]
    output: str = ""
    reward_folders: dict[str, str] = field(default_factory=dict)
    allow_download: bool = False
    batch: int = bounded(8, minimum=1)


@dataclass(frozen=True)
class Work:
    """What to score.

    Attributes:
        config: the settings.
        files: pictures.
        prompts: one per picture.
    """

    config: ScoreConfig
    files: Sequence[Path]
    prompts: Sequence[str]


def check(config: ScoreConfig) -> Work:
    """Find the pictures and their prompts, and check everything that needs no reward.

    Raises:
        ValueError: no rewards or an unknown one, no pictures, a number of prompts that fits neither, an output that cannot be
            written, or one that exists and is no table of this command.
    """
    check_bounds(config)
    if not config.rewards:
        raise ValueError("no rewards: give at least one, e.g. --rewards '[aesthetic]'")
    check_names(config.rewards)
    files = _pictures(config.images)
    prompts = _prompts(config.prompts, len(files))
    if config.output:
        check_file(Path(config.output))
        _check_replaced(Path(config.output))
    return Work(config, files, prompts)


def _check_replaced(output: Path) -> None:
    if not output.exists():
        return
    with output.open(encoding="utf-8", errors="replace", newline="") as file:
        columns = next(csv.reader([file.readline()]), [])
    is_table = columns[:2] == ["image", "prompt"] and all(name in CATALOGUE or ":" in name for name in columns[2:])
    if columns and not (is_table and len(columns) > 2):
        raise ValueError(
            f"{output} exists and is no table of this command: choose another name, or remove the file first"
        )


def _pictures(images: Sequence[str]) -> list[Path]:
    paths = [Path(image) for image in images]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in SUFFIXES)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no such picture: {', '.join(missing)}")
    if not paths:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(images) or 'an empty list'}")
    return paths


def _prompts(source: str, count: int) -> list[str]:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"prompts {source!r}: no such text file; write the prompts into one, a line for each picture")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) == 1:
        return lines * count
    if len(lines) != count:
        raise ValueError(
            f"{len(lines)} prompts in {source} for {count} pictures: write one per picture, or one for all"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = parse_settings(
        ScoreConfig,
        "score",
        "Score images with rewards.",
        sys.argv[1:] if arguments is None else arguments,
        switches=("--allow_download",),
    )
    return run_command("score", lambda: _score(config))


def _score(config: ScoreConfig) -> None:
    work = check(config)  # before torch is imported
    from .scoring import score_work

    sys.stdout.write(score_work(work) + "\n")
