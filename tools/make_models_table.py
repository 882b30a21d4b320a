"""Run the matrices of nodes and of networks on the newest ComfyUI found, and write their tables into ``docs/models.md``.

``python tools/make_models_table.py`` runs everything. With names of nodes or networks it runs only
those and keeps the other rows.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy_hosts

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "models.md"


@dataclass(frozen=True)
class Table:
    """A table in the document.

    Args:
        subject: of its rows.
        columns: after the subject.
    """

    subject: str
    columns: tuple[str, ...]

    @property
    def marks(self) -> tuple[str, str]:
        """The comments around the table."""
        return f"<!-- {self.subject}s: made by tools/make_models_table.py -->", f"<!-- end of {self.subject}s -->"

    def rows_of(self, text: str) -> dict[str, str]:
        """The rows that the table has now, by their first cell."""
        begin, end = self.marks
        inside = text[text.index(begin) : text.index(end)]
        head = rf"\| (?!{self.subject}|---)"
        return {line.split("|")[1].strip(): line for line in inside.splitlines() if re.match(head, line)}

    def write(self, rows: dict[str, str], version: str) -> None:
        """Put the table into the document, in the place of the one before."""
        begin, end = self.marks
        head = f"| {' | '.join((self.subject, *self.columns))} |\n|{'---|' * (1 + len(self.columns))}"
        table = "\n".join([begin, "", f"Made on ComfyUI {version}.", "", head, *rows.values(), "", end])
        text = TARGET.read_text(encoding="utf-8")
        text = text[: text.index(begin)] + table + text[text.index(end) + len(end) :]
        TARGET.write_text(text, encoding="utf-8")


NODES = Table("node", ("checkpoint", "blend", "batched", "stochastic", "soup", "early", "plain model after"))
NETWORKS = Table(
    "network", ("sequential", "batched", "auto", "stochastic per image", "plain model after", "rows in one call")
)
Cells = Callable[[], list[str]]


def nodes(folder: Path) -> Iterator[tuple[str, Cells]]:
    """The nodes by name, and what runs them."""
    import comfy_cases
    from comfy_world import World

    worlds: dict[str, Any] = {}

    def run(case: Any) -> list[str]:
        if not case.exists():
            return [case.kind, *[comfy_cases.ABSENT] * 6]
        if case.kind not in worlds:
            worlds[case.kind] = World(case.kind, folder)
        return [case.kind, *comfy_cases.outcomes(worlds[case.kind], case).values()]

    for case in comfy_cases.CASES:
        yield case.name, lambda case=case: run(case)


def networks(folder: Path) -> Iterator[tuple[str, Cells]]:
    """The networks by name, and what runs them."""
    import comfy_architectures
    import comfy_network_runs
    import comfy_networks

    def run(each: Any) -> list[str]:
        return list(comfy_network_runs.outcomes(each, folder).values()) if each.exists() else ["-"] * 6

    for each in (*comfy_networks.ARCHITECTURES, *comfy_architectures.FURTHER):
        yield each.name, lambda each=each: run(each)


def main(names: list[str]) -> int:
    """Run the cases; returns the exit status: 1 if one of them is wrong."""
    host = comfy_hosts.find_hosts()[0]
    sys.path.insert(0, str(host))
    sys.path.append(str(ROOT / "tests" / "support"))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import folder_paths
    import torch

    folder = Path(tempfile.mkdtemp())
    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    version, wrong = ".".join(map(str, comfy_hosts.version(host))), False
    for table, cases in ((NODES, dict(nodes(folder))), (NETWORKS, dict(networks(folder)))):
        rows = table.rows_of(TARGET.read_text(encoding="utf-8"))
        for name, run in cases.items():
            if names and name not in names:
                continue
            with torch.inference_mode():
                rows[name] = f"| {' | '.join((name, *run()))} |"
            print(rows[name], flush=True)
            table.write({each: rows[each] for each in cases if each in rows}, version)
        wrong = wrong or any("wrong" in row for row in rows.values())
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
