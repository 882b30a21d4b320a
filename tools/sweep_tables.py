"""Print the tables of a sweep as the pages have them: a row for each preference, a column for each method.

``python tools/sweep_tables.py runs/set2_sweep --reward alignment`` reads ``summary.json`` in the folder of a sweep with one KL
scale. It prints the difference in r(w) from blend with the root mean square over pictures, the mean of the reward, the
hypervolumes, the comparison with trained adapters, and the blend's effective share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_blend.evaluation.sweep.methods import label

Row = Mapping[str, Any]
Cells = dict[tuple[str, tuple[float, ...]], Row]


def number(value: float, digits: int = 2) -> str:
    """A number without the zero before its point."""
    text = f"{value:.{digits}f}"
    return text.replace("-0.", "-.", 1) if text.startswith("-0.") else text.removeprefix("0")


def with_interval(pair: Sequence[float], digits: int = 2) -> str:
    """A mean and the half width of its interval."""
    return f"{number(pair[0], digits)} ± {number(pair[1], digits)}"


def preference(weights: Sequence[float]) -> str:
    """A preference, ``.5/.25/.25``."""
    return "/".join(f"{weight:g}".removeprefix("0") or "0" for weight in weights)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def pivot(title: str, cells: Cells, methods: Sequence[str], write: Callable[[Row], str]) -> Iterator[str]:
    """A table with a row for each preference and a column for each method that has any."""
    columns = [method for method in methods if any(key[0] == method for key in cells)]
    weights = list(dict.fromkeys(key[1] for key in cells))
    rows = [
        [preference(own), *(write(cells[method, own]) if (method, own) in cells else "" for method in columns)]
        for own in weights
    ]
    yield from ("", title, "")
    yield from table(["preference", *map(label, columns)], rows)


def by_cell(rows: Sequence[Row], corners: bool) -> Cells:
    """Rows of a summary by method and preference. Corners are one adapter alone."""
    return {(row["method"], tuple(row["weights"])): row for row in rows if corners or max(row["weights"]) < 1}


def hypervolumes(summary: Mapping[str, Any], methods: Sequence[str]) -> Iterator[str]:
    """Hypervolumes with the interval of their difference from blend's, calls and seconds."""
    volumes = {(row["method"], row["rewards"]): row for row in summary["hypervolume"]}
    groups = list(dict.fromkeys(row["rewards"] for row in summary["hypervolume"]))
    mixtures = by_cell(summary["means"], corners=False)

    def volume(row: Row) -> str:
        low, high = number(row["- blend, low"], 3), number(row["- blend, high"], 3)
        return number(row["hypervolume"], 3) + ("" if row["method"] == "blend" else f" ({low} to {high})")

    rows = []
    for method in methods:
        own = [row for (name, _), row in mixtures.items() if name == method]
        if not own or not any((method, group) in volumes for group in groups):
            continue
        calls = sorted({round(row["calls/picture"], 1) for row in own})
        seconds = sum(row["s/picture"] for row in own) / len(own)
        shown = [volume(volumes[method, group]) if (method, group) in volumes else "" for group in groups]
        spread = f"{calls[0]:g}" + (f" to {calls[-1]:g}" if len(calls) > 1 else "")
        rows.append([label(method), *shown, spread, number(seconds, 3)])
    yield from ("", "Hypervolume, and the interval of its difference from blend's:", "")
    yield from table(["method", *groups, "calls a picture", "seconds a picture"], rows)


def tables(summary: Mapping[str, Any], reward: str) -> Iterator[str]:
    """All tables of a summary."""
    methods = list(dict.fromkeys(row["method"] for row in summary["means"]))
    others = [method for method in methods if method not in ("base", "blend")]
    means, against = by_cell(summary["means"], corners=True), by_cell(summary["against blend"], corners=False)
    trained = by_cell(summary["against trained"], corners=False)
    yield from pivot("r(w) - blend:", against, others, lambda row: with_interval(row["r(w) - blend"]))
    yield from pivot("Root mean square of r(w) - blend:", against, others, lambda row: number(row["rms"]))
    if reward:
        yield from pivot(f"{reward}:", means, methods, lambda row: with_interval(row[reward]))
    yield from hypervolumes(summary, methods)
    yield from pivot(
        "r(w) - MORL in standard deviations of the base's r(w) (p that it is lower by more than the margin):",
        trained,
        [method for method in methods if method != "base"],
        lambda row: f"{with_interval(row['r(w) - MORL, sd'])} ({number(row['p not below'])})",
    )
    shares = {key: row for key, row in means.items() if key[0] == "blend" and row["effective share"] is not None}
    yield from pivot(
        "Effective share of the blend's pictures:", shares, ["blend"], lambda row: number(row["effective share"])
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a sweep, or its summary.json")
    parser.add_argument("--reward", default="", help="a reward whose means are printed, too")
    given = parser.parse_args(arguments)
    file = given.sweep / "summary.json" if given.sweep.is_dir() else given.sweep
    summary = json.loads(file.read_text(encoding="utf-8"))
    if len({row["kl_scale"] for row in summary["means"]}) > 1:
        parser.error(f"{file} has several KL scales: give a sweep of one")
    sys.stdout.write("\n".join(tables(summary, given.reward)).lstrip("\n") + "\n")


if __name__ == "__main__":
    main()
