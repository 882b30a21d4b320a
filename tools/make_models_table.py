"""Run the matrix of nodes and methods on the newest ComfyUI found, and write its table into ``docs/models.md``.

``python tools/make_models_table.py`` runs everything; with names of nodes it runs only those and keeps the other rows.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import comfy_hosts

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- nodes: made by tools/make_models_table.py -->", "<!-- end of nodes -->"
COLUMNS = ("node", "checkpoint", "blend", "batched", "stochastic", "soup", "early", "plain model after")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def rows_of(text: str) -> dict[str, str]:
    """The rows that the table has now, by the node's name."""
    table = text[text.index(BEGIN) : text.index(END)] if BEGIN in text else ""
    return {line.split("|")[1].strip(): line for line in table.splitlines() if re.match(r"\| (?!node|---)", line)}


def write(rows: dict[str, str], version: str) -> None:
    """Put the table into the document, in the place of the one before."""
    table = "\n".join([BEGIN, "", f"Made on ComfyUI {version}.", "", HEAD, *rows.values(), "", END])
    text = TARGET.read_text(encoding="utf-8")
    text = text[: text.index(BEGIN)] + table + text[text.index(END) + len(END) :]
    TARGET.write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    """Run the cases; returns the exit status: 1 if one of them is wrong."""
    host = comfy_hosts.find_hosts()[0]
    sys.path.insert(0, str(host))
    sys.path.append(str(ROOT / "tests" / "support"))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy_cases
    import folder_paths
    import torch
    from comfy_world import World

    folder = Path(tempfile.mkdtemp())
    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    rows, worlds = rows_of(TARGET.read_text(encoding="utf-8")), {}
    version = ".".join(map(str, comfy_hosts.version(host)))
    for case in comfy_cases.CASES:
        if names and case.name not in names:
            continue
        with torch.inference_mode():
            if case.exists():
                world = worlds.setdefault(case.kind, None) or World(case.kind, folder)
                worlds[case.kind] = world
                found = comfy_cases.outcomes(world, case)
            else:
                found = dict.fromkeys((*comfy_cases.METHODS, "plain"), comfy_cases.ABSENT)
        rows[case.name] = "| " + " | ".join([case.name, case.kind, *found.values()]) + " |"
        print(rows[case.name], flush=True)
        write(rows, version)
    return int(any("wrong" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
