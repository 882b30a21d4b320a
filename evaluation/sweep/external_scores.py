"""Scores that another program gave to a sweep's pictures, joined to its table."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artifacts.files import write_once
from .checks import RESERVED

_PLACES = ("picture", "image")
"""Columns that can name the picture: as in samples.csv, and as ``diffusion-blend score`` writes it."""


def read_scores(file: Path) -> dict[str, dict[str, float]]:
    """Read a table of scores.

    Args:
        file: CSV with a column ``picture`` or ``image`` that holds paths ending in ``RECIPE/NUMBER.png``. Every other
            column but ``prompt`` is a reward.

    Returns:
        ``RECIPE/NUMBER.png`` -> reward -> score; an empty cell has no entry.

    Raises:
        ValueError: not a table of text, no such column, no reward, a name that a column of the table has, or a cell that
            is no finite number.
    """
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a table in UTF-8 text ({error}): save it as CSV") from error
    place = next((name for name in _PLACES if name in columns), None)
    rewards = [name for name in columns if name not in (*_PLACES, "prompt")]
    if place is None or not rewards:
        raise ValueError(f"{file} has the columns {columns}: it needs picture (or image) and at least one reward")
    taken = [name for name in rewards if name in RESERVED or name.startswith("w_")]
    if taken:
        raise ValueError(f"{file} has the column {taken[0]!r}, whose name is taken: give the reward another name")
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        picture = "/".join(Path(row[place]).parts[-2:])
        found[picture] = {name: _number(row[name], name, picture, file) for name in rewards if row[name]}
    return found


def _number(text: str, reward: str, picture: str, file: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{file}: the score {reward} of {picture} is {text!r}, which is not a finite number")
    return value


def keep_scores(files: Sequence[str], folder: Path, rewards: Sequence[str]) -> None:
    """Copy tables of scores into a sweep's folder, after checking them.

    Raises:
        ValueError: see `read_scores`; or a column has the name of a reward that the sweep computes.
    """
    for name in files:
        scores = read_scores(Path(name))
        clash = {reward for entry in scores.values() for reward in entry} & set(rewards)
        if clash:
            raise ValueError(
                f"{name} has the column {min(clash)!r}, a reward that this sweep computes: rename the column"
            )
        content = Path(name).read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        write_once(folder / f"{hashlib.sha256(content).hexdigest()[:12]}.csv", content)


def join_scores(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Rows with the scores of every table in a folder; a picture without a score has None."""
    scores: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*.csv")):
        for picture, entry in read_scores(file).items():
            scores[picture] = scores.get(picture, {}) | entry
    names = sorted({name for entry in scores.values() for name in entry})
    return [dict(row) | _scored(row, scores, names) for row in rows]


def _scored(
    row: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, float | None]:
    own = scores.get(f"{row['recipe']}/{row['image']:06d}.png", {})
    return {name: own.get(name) for name in names}


def external_rewards(folder: Path) -> list[str]:
    """The names of all rewards in a folder's tables of scores."""
    return sorted({name for file in folder.glob("*.csv") for entry in read_scores(file).values() for name in entry})
