"""Units of a study in files, so that a study that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.files import write_atomically


@dataclass(frozen=True)
class Units:
    """The finished units of one study: ``units/<name>.json`` in its folder.

    Args:
        folder: of the study; None keeps nothing.
        settings: everything besides a unit's name that decides its results.
    """

    folder: Path | None
    settings: Mapping[str, Any]

    def result(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of a unit, read from its file, or made and written.

        Args:
            name: of the unit, also the name of its file.
            make: computes it: numbers, strings and plain containers of them.

        Raises:
            ValueError: the file was made with other settings.
        """
        if self.folder is None:
            return make()
        file = self.folder / "units" / f"{name}.json"
        settings = json.loads(json.dumps(dict(self.settings)))
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["settings"] != settings:
                raise ValueError(
                    f"{file} was made with other settings ({found['settings']}, now {settings}): give the old settings, "
                    "or another folder"
                )
            return found["result"]
        result = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"settings": settings, "result": result}).encode())
        return result
