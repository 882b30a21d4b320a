"""Draw the figures of `sampling.py`: cost over the number of adapters, and over their rank.

python benchmarks/speed_figure.py FIGURE.png FIGURES.json [FIGURES.json ...]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

KINDS = ("blend of {}, sequential", "blend of {}, batched", "hooks wired by hand, {}", "naive swapping, {}")
RANKED = ("stochastic of 4", "soup of 4", "blend of 4, sequential")


def series(cells: list[dict[str, Any]], kind: str) -> dict[int, float]:
    """Return number of adapters -> ratio to the base run, of one variant at the lowest rank. Later files count."""
    lowest = min(cell["rank"] for cell in cells)
    pattern = re.compile(re.escape(kind).replace(r"\{\}", r"(\d+)"))
    found = {}
    for cell in cells:
        for name, row in cell["figures"].items() if cell["rank"] == lowest else ():
            if match := pattern.fullmatch(name):
                found[int(match.group(1))] = row["ratio"]
    return dict(sorted(found.items()))


def main() -> None:
    target, *files = sys.argv[1:]
    cells = [cell for file in files for cell in json.loads(Path(file).read_text())["cells"]]
    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        if points := series(cells, kind):
            left.plot(list(points), list(points.values()), "o-", label=kind.replace(" of {}", "").replace(", {}", ""))
    most = max(series(cells, KINDS[0]))
    left.plot([1, most], [1, most], ":", color="grey", label="m base calls")
    left.set(xlabel="adapters m", ylabel="seconds, base run = 1", ylim=(0, None))
    left.legend()
    for name in RANKED:
        found = {
            cell["rank"]: cell["figures"][name] for cell in cells if name in cell["figures"]
        }  # later files override earlier ones
        rows = dict(sorted(found.items()))
        ranks, per_call = list(rows), [row["ratio"] / row["calls"] for row in rows.values()]
        (line,) = right.plot(ranks, per_call, "o-", label=name)
        counted = [row["counted"] / row["calls"] for row in rows.values()]
        right.plot(ranks, counted, ":", color=line.get_color())
    right.set(xlabel="rank (dotted: FLOPs counted)", ylabel="seconds per model call, base = 1", xscale="log")
    measured = sorted({cell["rank"] for cell in cells})
    right.set_xticks(measured, labels=[str(rank) for rank in measured])
    right.minorticks_off()
    right.legend()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
