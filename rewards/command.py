"""``diffusion-blend score``: images and prompts to a table of rewards."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..artifacts.command_line import parse_settings
from ..artifacts.files import write_atomically
from ..artifacts.pictures import read_picture
from ..artifacts.tables import csv_bytes
from .load import load_rewards
from .protocol import Reward, score

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ScoreConfig:
    """Score images with rewards.

    Attributes:
        images: picture files, or one folder (its pictures in the order of their names).
        prompts: text file with one prompt per picture, in the same order; or one line for all of them.
        rewards: reward names, as in training.
        output: CSV file to write; empty only prints the table.
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
    batch: int = 8


def score_files(config: ScoreConfig) -> list[dict[str, str | float]]:
    """Score picture files.

    Args:
        config: what with what; see ``ScoreConfig``.

    Returns:
        One row per picture: ``image``, ``prompt`` and a number per reward.

    Raises:
        ValueError: no pictures, an unreadable one, a number of prompts that fits neither, or a reward that cannot
            be had.
    """
    if config.batch < 1:
        raise ValueError(f"batch is {config.batch}: it must be at least 1")
    files = _pictures(config.images)
    prompts = _prompts(config.prompts, len(files))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rewards = load_rewards(config.rewards, config.reward_folders, device, allow_download=config.allow_download)
    scores = _in_batches(rewards, files, prompts, config.batch)
    return [
        {"image": str(file), "prompt": prompt, **{name: scores[name][i] for name in rewards}}
        for i, (file, prompt) in enumerate(zip(files, prompts, strict=True))
    ]


def _in_batches(
    rewards: dict[str, Reward], files: list[Path], prompts: list[str], size: int
) -> dict[str, list[float]]:
    """Scores by reward name. Only one batch of pictures is in memory at a time."""
    scores: dict[str, list[float]] = {name: [] for name in rewards}
    done = 0
    for batch in _batches(files, size):
        for name, values in score(rewards, batch, prompts[done : done + len(batch)]).items():
            scores[name] += values.tolist()
        done += len(batch)
    return scores


def _batches(files: Sequence[Path], size: int) -> Iterator[Tensor]:
    """Read runs of pictures of the same size, at most ``size`` at a time, float32[B, 3, H, W]."""
    waiting: list[Tensor] = []
    for file in files:
        picture = read_picture(file)
        if waiting and (len(waiting) == size or waiting[0].shape != picture.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(picture)
    if waiting:
        yield torch.stack(waiting)


def _pictures(images: Sequence[str]) -> list[Path]:
    paths = [Path(image) for image in images]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in _SUFFIXES)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no such picture: {', '.join(missing)}")
    if not paths:
        raise ValueError(f"no pictures ({', '.join(_SUFFIXES)}) in {', '.join(images) or 'an empty list'}")
    return paths


def _prompts(source: str, count: int) -> list[str]:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"prompts {source!r}: no such text file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) == 1:
        return lines * count
    if len(lines) != count:
        raise ValueError(
            f"{len(lines)} prompts in {source} for {count} pictures: write one per picture, or one for all"
        )
    return lines


def table(rows: Sequence[dict[str, str | float]]) -> str:
    """The rows as aligned text, with the mean of every reward below."""
    names = [name for name in rows[0] if name not in ("image", "prompt")]
    width = max(len(str(row["image"])) for row in rows)
    lines = [f"{'image':{width}}  " + "  ".join(f"{name:>12}" for name in names)]
    lines += [
        f"{row['image']!s:{width}}  " + "  ".join(f"{row[name]:{max(12, len(name))}.4f}" for name in names)
        for row in rows
    ]
    means = [sum(float(row[name]) for row in rows) / len(rows) for name in names]
    shown = "  ".join(f"{mean:{max(12, len(name))}.4f}" for name, mean in zip(names, means, strict=True))
    return "\n".join([*lines, f"{'mean':{width}}  {shown}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = parse_settings(
        ScoreConfig,
        "score",
        "Score images with rewards.",
        sys.argv[1:] if arguments is None else arguments,
        switches=("--allow_download",),
        renamed={"--out": "--output"},
    )
    try:
        rows = score_files(config)
        if config.output:
            write_atomically(Path(config.output), csv_bytes(rows))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"diffusion-blend score: {error}\n")
        return 1
    sys.stdout.write(table(rows) + "\n")
    return 0
