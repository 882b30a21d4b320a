"""The tables of docs/miniature.md are those that ``tools/sweep_tables.py`` prints of the summary beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = ROOT / "docs" / "data" / "set2_seed0.json"


def printed(*words: str) -> list[str]:
    """The tables that the tool prints, without their titles."""
    command = [sys.executable, str(ROOT / "tools" / "sweep_tables.py"), *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [block for block in output.split("\n\n") if block.startswith("|")]


@pytest.fixture(scope="module")
def tables() -> list[str]:
    return printed(str(SUMMARY), "--reward", "alignment")


def test_the_page_has_these_tables(tables: list[str]) -> None:
    page = (ROOT / "docs" / "miniature.md").read_text()
    missing = [table.splitlines()[0] for table in tables if table.strip() not in page]
    assert len(tables) == 6 and not missing


def test_the_cells_are_the_summary(tables: list[str]) -> None:
    """One cell by hand, and every table has a row for each mixture."""
    rows = {(row["method"], tuple(row["weights"])): row for row in json.loads(SUMMARY.read_text())["against blend"]}
    head, _, *lines = (line.strip("| ").split(" | ") for line in tables[0].splitlines())
    mean, half = rows["soup", (0.25, 0.75, 0.0)]["r(w) - blend"]
    cell = next(line for line in lines if line[0] == ".25/.75/0")[head.index("soup")]
    assert [float(part) for part in cell.split(" ± ")] == [round(mean, 2), round(half, 2)]
    assert len(lines) == 12
