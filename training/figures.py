"""The figure of a run: reward and KL over iterations."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def reward_curve(
    history: Sequence[Mapping[str, float]],
    watched: Sequence[Mapping[str, float]],
    trained: Sequence[str],
    heldout: Sequence[str],
) -> bytes:
    """Draw the trained reward with its spread, the KL, and the watched rewards.

    Args:
        history: per iteration: ``iteration``, ``reward``, ``reward_std``, and ``kl`` where it was measured.
        watched: per look: ``iteration`` and one figure per reward name.
        trained: names of the trained rewards.
        heldout: names of the held-out rewards.

    Returns:
        A PNG file's content.
    """
    panels = 2 + len(heldout)
    figure = Figure(figsize=(7, 2.4 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True)
    x = [row["iteration"] for row in history]
    mean = [row["reward"] for row in history]
    spread = [row["reward_std"] for row in history]
    axes[0].plot(x, mean, label=f"{' + '.join(trained)} (mean)")
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    axes[0].fill_between(x, low, high, alpha=0.2, label="+- standard deviation")
    axes[0].plot(
        [r["iteration"] for r in watched], [r["reward"] for r in watched], "o-", label="fixed prompts and noise"
    )
    axes[0].set_ylabel("reward")
    axes[0].legend()
    measured = [row for row in history if "kl" in row]
    axes[1].plot([row["iteration"] for row in measured], [row["kl"] for row in measured])
    axes[1].set_ylabel("KL to the base [nats]")
    for axis, name in zip(axes[2:], heldout, strict=True):
        axis.plot([row["iteration"] for row in watched], [row[name] for row in watched], "o-")
        axis.set_ylabel(f"{name} (held out)")
    axes[-1].set_xlabel("iteration")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
