"""The files of a sweep: its settings, one file per unit of work, and the table of all samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.files import write_atomically
from ...artifacts.tables import csv_bytes

Row = dict[str, Any]
"""One picture: its labels, every reward, ``kl`` (None: not measured or not defined), ``seconds``, ``calls``."""


@dataclass(frozen=True)
class Records:
    """The files of one sweep.

    ``settings.json``, ``units/<recipe>/<first>-<last>.json`` (a list of rows), ``images/<recipe>/<image>.png``,
    ``samples.csv``. A unit's file appears whole or not at all, after its pictures.
    """

    folder: Path

    def open(self, settings: Mapping[str, Any]) -> None:
        """Take a new folder for these settings, or see that the one found was made with them.

        Raises:
            ValueError: a setting differs, or the folder holds something else.
        """
        file = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds files and no sweep: give a new folder, or that of a sweep")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(settings, indent=1).encode())
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
        if different:
            changes = "; ".join(f"{key}: {found.get(key)!r}, now {settings.get(key)!r}" for key in different)
            raise ValueError(
                f"{self.folder} is a sweep with other settings ({changes}): give the old settings, or a new folder"
            )

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
        file = self.unit(recipe, images)
        file.parent.mkdir(parents=True, exist_ok=True)
        for image, content in pictures.items():
            self.picture(recipe, image).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.picture(recipe, image), content)
        write_atomically(file, json.dumps(rows).encode())

    def rows(self, recipe: str, images: Sequence[int]) -> list[Row]:
        """A finished unit's rows."""
        return json.loads(self.unit(recipe, images).read_text(encoding="utf-8"))

    def write_samples(self, rows: Sequence[Row]) -> None:
        """Write ``samples.csv``."""
        write_atomically(self.folder / "samples.csv", csv_bytes(rows))
