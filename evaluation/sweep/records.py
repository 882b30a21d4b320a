"""The files of a sweep: its settings, the points asked for, one file per unit of work, and the table of all samples."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.files import write_atomically, write_once
from ...artifacts.tables import csv_bytes
from .points import Point

Row = dict[str, Any]
"""One picture: its labels, every reward, ``kl`` (None: not measured or not defined), ``seconds``, ``calls``."""

PICTURES = "8 bits"
"""Pictures are rounded to 8 bits before they are scored, as in their files, so that a reward added later sees the same."""


@dataclass(frozen=True)
class Records:
    """The files of one sweep, which several processes write at the same time.

    ``settings.json``, ``points/<point>.<images>.json``, ``rewards/<name>.json``, ``external/<digest>.csv``,
    ``units/<recipe>/<first>-<last>.json`` (a list of rows), ``images/<recipe>/<image>.png``, ``claims/``, ``samples.csv``.
    Every file appears whole or not at all; a unit's rows appear after its pictures.
    """

    folder: Path

    def settings(self) -> dict[str, Any] | None:
        """The settings that the folder was made with; None for a new folder."""
        file = self.folder / "settings.json"
        return _read(file, "it cannot be made again: start in a new folder") if file.exists() else None

    def compare(self, settings: Mapping[str, Any]) -> None:
        """Check that a folder is new, or was made with these settings; rewards are compared by `add_rewards`.

        Raises:
            ValueError: a setting differs, or the folder holds something else.
        """
        found = self.settings()
        if found is None:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds files and no sweep: give a new folder, or that of a sweep")
            return
        now = json.loads(json.dumps(settings))
        # A setting that the version which made the folder did not have was at its neutral value.
        names = [key for key in {**found, **now} if key not in ("rewards", "pictures")]
        different = [key for key in names if found.get(key) != now.get(key) and (key in found or now.get(key))]
        if different:
            changes = "; ".join(f"{key}: {found.get(key)!r}, now {now.get(key)!r}" for key in different)
            raise ValueError(
                f"{self.folder} is a sweep with other settings ({changes}): give the old settings, or a new folder"
            )
        _check_same(self.rewards(), now["rewards"], self.folder)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Take a new folder for these settings, or join the sweep that is there.

        Raises:
            ValueError: see `compare`; another process may have taken the folder a moment ago.
        """
        self.compare(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**settings, "pictures": PICTURES}
        write_once(self.folder / "settings.json", json.dumps(content, indent=1).encode())
        self.compare(settings)
        known = self.rewards()
        for name, reward in settings["rewards"].items():
            if name not in known:
                file = self._made("rewards", f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.json")
                write_once(file, json.dumps({"name": name, "reward": reward}).encode())
        _check_same(self.rewards(), settings["rewards"], self.folder)

    def _made(self, *parts: str) -> Path:
        file = self.folder.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    @property
    def rounds_pictures(self) -> bool:
        """Whether pictures are rounded to 8 bits before they are scored; folders of earlier versions did not."""
        return (self.settings() or {}).get("pictures") == PICTURES

    def rewards(self) -> dict[str, str]:
        """Every reward that was asked of the folder, name -> reward; those of the first call first."""
        known: dict[str, str] = dict((self.settings() or {}).get("rewards", {}))
        added = [_read(file) for file in (self.folder / "rewards").glob("*.json")]
        return known | {entry["name"]: entry["reward"] for entry in sorted(added, key=lambda entry: entry["name"])}

    def add_points(self, points: Sequence[Point]) -> None:
        """Record that points were asked for."""
        for point in points:
            content = {
                "method": point.method,
                "weights": list(point.weights),
                "kl_scale": point.kl_scale,
                "recipe": dict(point.recipe),
                "settings": point.settings,
            }
            file = self._made("points", f"{point.key}.{point.images}.json")
            if not file.exists():
                write_once(file, json.dumps(content).encode())

    def check_points(self, points: Sequence[Point]) -> None:
        """Check that the folder holds no point of the same label whose pictures another recipe makes.

        Raises:
            ValueError: it does, so the tables would mix both.
        """
        known = {point.label: point for point in self.points()}
        for point in points:
            found = known.get(point.label)
            if found is not None and found.folder != point.folder:
                at = f" at {'/'.join(f'{weight:g}' for weight in point.weights)}" if point.weights else ""
                raise ValueError(
                    f"{self.folder} holds {point.method}{at} made in another way ({_difference(found.recipe, point.recipe)}), "
                    "and its tables would mix both: give the files and settings of then, or a new folder"
                )

    def points(self) -> list[Point]:
        """Every point that was ever asked for, with the largest number of pictures, in the order of the tables."""
        most: dict[str, int] = {}
        for file in (self.folder / "points").glob("*.json"):
            key, images = file.stem.rsplit(".", 1)
            most[key] = max(most.get(key, 0), int(images))
        found: list[Point] = []
        for key, images in most.items():
            entry = _read(self.folder / "points" / f"{key}.{images}.json")
            weights = tuple(entry["weights"])
            found.append(Point(entry["method"], weights, entry["kl_scale"], entry["recipe"], entry["settings"], images))
        return sorted(found, key=lambda point: point.order)

    def earlier_points(self, adapters: Sequence[str]) -> dict[tuple[str, tuple[float, ...], float], int]:
        """Points of a folder that an earlier version made, which recorded none: (method, weights, KL scale) -> pictures."""
        table = self.folder / "samples.csv"
        counts: dict[tuple[str, tuple[float, ...], float], int] = {}
        if not table.exists() or (self.folder / "points").exists():
            return counts
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                words = [row[f"w_{name}"] for name in adapters]
                weights = tuple(float(word) for word in words) if all(words) else ()
                key = (row["method"], weights, float(row["kl_scale"]))
                counts[key] = counts.get(key, 0) + 1
        return counts

    def unit(self, recipe: str, images: Sequence[int]) -> Path:
        """The file of a unit of work."""
        return self.folder / "units" / recipe / f"{images[0]:06d}-{images[-1]:06d}.json"

    def picture(self, recipe: str, image: int) -> Path:
        """The file of a picture."""
        return self.folder / "images" / recipe / f"{image:06d}.png"

    def write_unit(
        self, recipe: str, images: Sequence[int], rows: Sequence[Row], pictures: Mapping[int, bytes]
    ) -> None:
        """Write a finished unit: its pictures, then its rows."""
        for image, content in pictures.items():
            write_atomically(self._made("images", recipe, self.picture(recipe, image).name), content)
        write_atomically(self._made("units", recipe, self.unit(recipe, images).name), json.dumps(rows).encode())

    def rows(self, recipe: str, images: Sequence[int]) -> list[Row] | None:
        """A finished unit's rows; None while it is not finished."""
        try:
            return _read(self.unit(recipe, images))
        except FileNotFoundError:
            return None

    def write_samples(self, rows: Sequence[Row]) -> None:
        """Write ``samples.csv``."""
        write_atomically(self.folder / "samples.csv", csv_bytes(rows))


def _read(file: Path, remedy: str = "remove it, and what it records is made again") -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): {remedy}") from error


def _difference(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first entry in which two recipes differ."""
    name = next(key for key in {**known, **asked} if known.get(key) != asked.get(key))
    return f"{name}: {_short(known.get(name))}, now {_short(asked.get(name))}"


def _short(value: Any) -> str:
    """A recipe's entry, with the first digits of a file's digest."""
    if isinstance(value, str):
        return value[:12]
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, Sequence) else str(value)


def _check_same(known: Mapping[str, str], asked: Mapping[str, str], folder: Path) -> None:
    for name, reward in asked.items():
        if known.get(name, reward) != reward:
            raise ValueError(
                f"{folder} is a sweep with other settings (rewards.{name}: {known[name]!r}, now {reward!r}): "
                "give the new reward another name, or give a new folder"
            )
