"""Results as JSON lines: each is written and flushed the moment it is there, so that a cut-off run keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE, UNIT = "GPU_KIT_RECORDS", "GPU_KIT_UNIT"
"""Environment variables by which the runner tells a unit where its lines go and how it is called."""


class Records:
    """Appends lines to a file.

    Args:
        path: of the file; None prints the lines.
        unit: who writes.
    """

    def __init__(self, path: Path | None, unit: str) -> None:
        self.path, self.unit = path, unit

    def write(self, what: str, **values: Any) -> None:
        """Append one line.

        Args:
            what: the kind of result.
            values: the result; only what JSON can hold, and no NaN.
        """
        line = json.dumps({"unit": self.unit, "what": what} | values, allow_nan=False)
        if self.path is None:
            print(line, flush=True)
            return
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a line that a run was cut off in, which `read` leaves out
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def missing(self, name: str, why: str) -> None:
        """Say that something asked for cannot be measured yet, and why."""
        self.write("missing", name=name, why=why)


def of_this_unit() -> Records:
    """The records of the unit that this process is; printed where no runner started it."""
    path = os.environ.get(FILE)
    return Records(Path(path) if path else None, os.environ.get(UNIT, "by hand"))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file. A last line that was cut off is left out.

    Raises:
        ValueError: another line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no line end: the run was cut off while it wrote
                return
            raise ValueError(f"{path}, line {number} is no JSON: {line[:80]!r}") from error


def finite(value: float) -> float | None:
    """A number that JSON can hold: None for NaN and infinities."""
    return value if abs(value) < float("inf") else None
