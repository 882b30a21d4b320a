"""The figure of the study: regret over duels for every way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .study import AT

TOP = 0.8
"""The largest regret in the figure: a walk over a grid can be worse than an average option, which is of no further interest."""
STYLES = ("o-", "s--", "^:", "v:", "D-.", "x-.")


def taste_figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for every number of adapters (down) and kind of person (across)."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((row["utility"], row["random votes"]) for row in rows))
    counts = list(dict.fromkeys(row["adapters"] for row in rows))
    figure = Figure(figsize=(3.4 * len(kinds), 0.6 + 2.6 * len(counts)), layout="constrained")
    panels = figure.subplots(len(counts), len(kinds), squeeze=False, sharey=True)
    for down, count in enumerate(counts):
        for across, (utility, careless) in enumerate(kinds):
            panel = panels[down, across]
            here = [
                row
                for row in rows
                if (row["adapters"], row["utility"], row["random votes"]) == (count, utility, careless)
            ]
            for row, style in zip(here, STYLES, strict=False):
                values = [row[f"after {at}"] for at in AT]
                middles = [value[0] for value in values]
                reach = [[value[0] - value[1] for value in values], [value[2] - value[0] for value in values]]
                panel.errorbar(AT, middles, yerr=reach, fmt=style, markersize=4, capsize=2, label=row["asked by"])
            panel.set(title=f"{count} adapters, {utility}, {careless:.0%} random votes", xticks=AT)
            panel.title.set_fontsize(8)
    panels[0, 0].set_ylim(0, TOP)  # after all panels, because they share the axis
    panels[0, 0].legend(fontsize=7)
    figure.supxlabel("duels")
    figure.supylabel("median regret (0: the best, 1: an average option)")
    figure.savefig(path, dpi=110)
