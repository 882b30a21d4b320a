"""The figure of Blend Probe: the linearity gap over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .canvas import empty_figure, rendered


def gap_figure(steps: Sequence[int], gaps: Sequence[float], mean: float, same: float) -> Image.Image:
    """Draw the gap over the steps.

    Args:
        steps: the measured steps, from 0.
        gaps: the linearity gap at each.
        mean: of the gaps.
        same: the mean gap below which plain stacking counts as the same.
    """
    from matplotlib.ticker import MaxNLocator

    figure = empty_figure(720, 420)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.plot([step + 1 for step in steps], gaps, marker="o", markersize=3, label="gap")
    axes.axhline(mean, linestyle=":", color="tab:blue", label=f"mean {mean:.3f}")
    axes.axhline(same, linestyle="--", color="tab:gray", label=f"the same below {same}")
    axes.set(xlabel="step", ylabel="linearity gap", title="What plain stacking misses of the adapters' effect")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return rendered(figure)
