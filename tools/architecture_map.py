"""Write the map of files into ARCHITECTURE.md: ``python tools/architecture_map.py``.

Each line has a file and the first sentence of its docstring. ``tests/tree`` checks that the map equals the tree.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "blending",
    "preference_learning",
    "nodes",
    "rewards",
    "training",
    "evaluation",
    "pipelines",
    "miniature",
    "artifacts",
    "tools",
    "benchmarks",
)
BEGIN, END = "<!-- map: made by tools/architecture_map.py -->", "<!-- end of map -->"


def files(package: Path) -> list[Path]:
    """Return the Python files of a package that contain code, folders after files."""
    found = [file for file in package.rglob("*.py") if file.name != "__init__.py" or file.read_text().strip()]
    return sorted(found, key=lambda file: (len(file.relative_to(package).parts) > 1, file))


def summary(file: Path) -> str:
    """Return the first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", first)[0].rstrip(".:")


def table() -> str:
    """Return the map as text."""
    lines: list[str] = []
    for package in PACKAGES:
        lines += [f"### {package}/", "", "| file | holds |", "|---|---|"]
        root = ROOT / package
        lines += [f"| `{file.relative_to(root)}` | {summary(file)} |" for file in files(root)]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Replace the map in ARCHITECTURE.md."""
    page = ROOT / "ARCHITECTURE.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
