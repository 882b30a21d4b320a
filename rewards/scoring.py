"""Scores any number of pictures in parts: bounded memory, shared by several processes, resumed after an interruption."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts.claims import Claims
from ..artifacts.files import flush_folder, temporary_file, write_atomically, write_once
from ..artifacts.pictures import read_picture
from ..artifacts.workers import Worker
from .command import ScoreConfig, Work, check
from .guarded import RewardFailed, guard
from .load import load_rewards
from .protocol import Reward, score

PART = 256
"""Pictures of a part: the most that an interruption costs a process."""
MOST_PRINTED = 200
"""Rows of the printed table; of more pictures only the means are printed."""
EXPIRY = 300.0
"""Seconds without a sign of life after which another process takes over a part."""
ADVICE = "Fix the reward and run the command again"

Row = dict[str, Any]


def score_files(config: ScoreConfig) -> list[Row]:
    """Score picture files: a row per picture with ``image``, ``prompt`` and a number per reward.

    Raises:
        ValueError: see `command.check`; or an unreadable picture, or a reward that cannot be had or returned the wrong thing.
        RewardFailed: a reward raised an error.
    """
    work = check(config)
    return _score_part(_rewards(config), work, range(len(work.files)))


def _rewards(config: ScoreConfig) -> dict[str, Reward]:
    device, download = Worker.of_environment().device, config.allow_download
    return guard(load_rewards(config.rewards, config.reward_folders, device, allow_download=download), advice=ADVICE)


def score_work(work: Work) -> str:
    """Score pictures, write the table if an output was asked for, and return it as text.

    Raises:
        ValueError: a reward that cannot be had or returned the wrong thing, an unreadable picture, or parts of another run
            beside the output.
        RewardFailed: a reward raised an error.
        FileNotFoundError: the folder of the parts was deleted.
    """
    if work.config.output:
        output = Path(work.config.output)
        return _score_into(work, output.with_name(f".{output.name}.parts"), output)
    with tempfile.TemporaryDirectory() as folder:
        return _score_into(work, Path(folder), None)


def _score_into(work: Work, folder: Path, output: Path | None) -> str:
    parts = Parts(folder, work)
    parts.open()
    try:
        rewards = _rewards(work.config)
        for part in Claims(folder / "claims", EXPIRY).each(parts.all(), str, parts.is_done):
            parts.write(part, _score_part(rewards, work, parts.pictures(part)))
        text = printed_table(parts.rows(), len(work.files))
        if output is not None:
            _write_table(parts.rows(), output)
            parts.remove()
    except FileNotFoundError:
        # At any moment another process may finish, which writes the table and then removes the parts.
        if output is None or not (parts.are_gone and output.exists()):
            raise
        return f"{output} is written"
    except (ValueError, RewardFailed):
        parts.remove_if_unused()
        raise
    return text


@dataclass(frozen=True)
class Parts:
    """The parts of a run in a folder: ``settings.json``, ``<part>.json`` (a list of rows), ``claims/``."""

    folder: Path
    work: Work

    def open(self) -> None:
        """Make the folder, or go on with the run that is there.

        Raises:
            ValueError: the parts belong to other pictures, prompts, rewards or folders of rewards.
        """
        config = self.work.config
        given: list[Any] = [[str(file) for file in self.work.files], list(self.work.prompts), config.rewards]
        if config.reward_folders:  # without them as in parts of older versions
            given.append(sorted(config.reward_folders.items()))
        digest = hashlib.sha256(json.dumps(given).encode()).hexdigest().encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not write_once(self._settings, digest) and self._settings.read_bytes() != digest:
            raise ValueError(
                f"{self.folder} holds an unfinished table of other pictures, prompts, rewards or reward_folders: delete the "
                "folder, or give another output"
            )

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def are_gone(self) -> bool:
        """Whether another process has joined the parts and removed them."""
        return not self._settings.exists()

    def all(self) -> list[int]:
        """The numbers of all parts."""
        return list(range(-(-len(self.work.files) // PART)))

    def pictures(self, part: int) -> range:
        """The pictures of a part."""
        return range(part * PART, min((part + 1) * PART, len(self.work.files)))

    def is_done(self, part: int) -> bool:
        """Whether a part has been scored."""
        return (self.folder / f"{part:06d}.json").exists() or self.are_gone

    def write(self, part: int, rows: Sequence[Row]) -> None:
        """Write a part."""
        write_atomically(self.folder / f"{part:06d}.json", json.dumps(rows).encode())

    def rows(self) -> Iterator[Row]:
        """All rows in order, one part in memory at a time."""
        for part in self.all():
            yield from json.loads((self.folder / f"{part:06d}.json").read_text(encoding="utf-8"))

    def remove_if_unused(self) -> None:
        """Remove the folder if no part has been scored and no other process works on one."""
        if not any(self.folder.glob("[0-9]*.json")) and not any(self.folder.glob("claims/*")):
            self.remove()

    def remove(self) -> None:
        """Remove the folder; the settings go first, so that waiting processes know."""
        self._settings.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _score_part(rewards: dict[str, Reward], work: Work, numbers: range) -> list[Row]:
    rows: list[Row] = []
    for first, pictures in _batches(work, numbers):
        prompts = work.prompts[first : first + len(pictures)]
        try:
            scores = score(rewards, torch.stack(pictures), prompts)
        except (ValueError, RewardFailed) as error:
            kind = RewardFailed if isinstance(error, RewardFailed) else ValueError
            raise kind(f"{_named(work.files[first : first + len(pictures)])}: {error}") from error
        for i, prompt in enumerate(prompts):
            rows.append(
                {
                    "image": str(work.files[first + i]),
                    "prompt": prompt,
                    **{name: float(scores[name][i]) for name in rewards},
                }
            )
    return rows


def _named(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name} ({len(files)} pictures)"


def _batches(work: Work, numbers: range) -> Iterator[tuple[int, list[Tensor]]]:
    """Runs of pictures of the same size, at most a batch of them in memory: the number of the first, and the pictures."""
    first, batch = numbers.start, list[Tensor]()
    for number in numbers:
        picture = read_picture(work.files[number])
        if batch and (len(batch) == work.config.batch or picture.shape != batch[0].shape):
            yield first, batch
            first, batch = number, []
        batch.append(picture)
    yield first, batch


def _write_table(rows: Iterator[Row], output: Path) -> None:
    temporary = temporary_file(output)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer: csv.DictWriter[str] | None = None
            for row in rows:
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(output.parent)


def printed_table(rows: Iterator[Row], count: int) -> str:
    """The rows as aligned text with the mean of every reward below; of many pictures, the means alone.

    Args:
        rows: one per picture.
        count: how many there are.
    """
    shown: list[Row] = []
    sums: dict[str, float] = {}
    for row in rows:
        if count <= MOST_PRINTED:
            shown.append(row)
        for name, value in row.items():
            if name not in ("image", "prompt"):
                sums[name] = sums.get(name, 0.0) + float(value)
    last = "mean" if shown else f"mean of {count} pictures"
    width = max(len(str(word)) for word in [last, *(row["image"] for row in shown)])
    text = io.StringIO()
    text.write(f"{'image':{width}}  " + "  ".join(f"{name:>12}" for name in sums) + "\n")
    means = {name: total / count for name, total in sums.items()}
    for row in [*shown, {"image": last, **means}]:
        cells = "  ".join(f"{row[name]:{max(12, len(name))}.4f}" for name in sums)
        text.write(f"{row['image']!s:{width}}  {cells}\n")
    return text.getvalue().rstrip("\n")
