"""Units of a long study in one file of JSON lines: an interrupted study goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

Row = dict[str, Any]


def run_units(path: Path, setting: Row, units: Iterable[tuple[str, Callable[[], Row]]]) -> dict[str, Row]:
    """Run the units that the file does not have, and write each as one line when it is done.

    Args:
        path: the file; its folder exists. A last line that was cut off is run again.
        setting: everything that all rows depend on.
        units: unique name and function of each.

    Returns:
        Every unit's row by its name.

    Raises:
        ValueError: the file is of another setting, or a line of it cannot be read.
    """
    setting = json.loads(json.dumps(setting))
    found = _read(path, setting)
    if not found:
        path.write_text(json.dumps({"setting": setting}) + "\n", encoding="utf-8")
    left = [(name, run) for name, run in units if name not in found]
    for name, run in tqdm(left, desc=path.stem, mininterval=5):
        found[name] = run()
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unit": name, "row": found[name]}) + "\n")
    return found


def _read(path: Path, setting: Row) -> dict[str, Row]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # cut off while it was written
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    if not lines:
        return {}
    try:
        before = json.loads(lines[0])["setting"]
        rows = {entry["unit"]: entry["row"] for entry in map(json.loads, lines[1:])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as the results of a study ({error}): remove it, or choose another folder."
        ) from error
    if before != setting:
        raise ValueError(f"{path} is of another setting ({before}) than this run ({setting}): choose another folder.")
    return rows
