"""Laws of the whole tree: sizes of files and functions, the map in ARCHITECTURE.md, versions that agree."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import architecture_map

ROOT = Path(__file__).parents[2]
SHIPPED = (
    "artifacts",
    "blending",
    "evaluation",
    "miniature",
    "nodes",
    "pipelines",
    "preference_learning",
    "rewards",
    "training",
)


def shipped_files() -> list[Path]:
    return [file for package in SHIPPED for file in sorted((ROOT / package).rglob("*.py"))]


def lengths(source: str) -> list[int]:
    """Count the lines of every function, without its docstring."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            text = (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            )
            docstring = (first.end_lineno or 0) - first.lineno + 1 if text else 0
            found.append((node.end_lineno or 0) - node.lineno + 1 - docstring)
    return found


def test_no_shipped_file_has_more_than_300_lines():
    long = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in shipped_files()}
    assert {name: count for name, count in long.items() if count > 300} == {}


def test_functions_are_short():
    found = sorted(length for file in shipped_files() for length in lengths(file.read_text()))
    assert statistics.median(found) <= 10
    assert found[int(0.9 * len(found))] <= 35


def test_lengths_by_hand():
    assert lengths('def f():\n    """One."""\n    a = 1\n    return a\n') == [3]


def test_the_map_is_the_tree():
    """Each package's table names its files, no more and no fewer; `tools/architecture_map.py` writes it."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in architecture_map.PACKAGES:
        section = text.split(f"### {package}/")[1].split("\n###")[0].split("<!--")[0]
        named = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        found = [str(file.relative_to(ROOT / package)) for file in architecture_map.files(ROOT / package)]
        assert named == found


def test_every_folder_of_code_is_on_the_map():
    folders = {file.parent.name for file in ROOT.glob("*/*.py")} - {".venv"}
    assert folders - {"hosts", "runs"} == set(architecture_map.PACKAGES)


def test_every_file_says_what_it_holds():
    silent = [file for package in architecture_map.PACKAGES for file in architecture_map.files(ROOT / package)]
    assert [str(file) for file in silent if len(architecture_map.summary(file)) < 15] == []


def test_versions_agree():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest is not None and cited is not None
    shipped = re.search(r'^__version__ = "([^"]+)"', (ROOT / "__init__.py").read_text(), re.MULTILINE)
    assert shipped is not None
    assert version.group(1) == newest.group(1) == cited.group(1) == shipped.group(1)
