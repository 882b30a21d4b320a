"""Every method beside the adapter that was trained for the same mixture (MORL), with tests of equality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..intervals import Array, clustered_interval, equivalence
from .statistics import Result

MARGIN = 0.05
"""The difference that counts as equal, in standard deviations of the base's r(w)."""


def against_trained(results: Sequence[Result], margin: float = MARGIN) -> list[dict[str, Any]]:
    """Paired comparison of every method with MORL at the same preference, picture by picture.

    Differences are in standard deviations of r(w) over the base's pictures at this preference; without a base of the sweep,
    over MORL's. Methods at every KL scale are compared: MORL has none.

    Returns:
        Rows with the mean of ``(r(w) - r(w) of MORL) / sd`` and the half width of its 95 % interval; ``p equal``, of the
        hypothesis that the true mean is more than ``margin`` away from 0 (two one-sided tests); and ``p not below``, of the
        hypothesis that it is below ``-margin``. Small p show equality, or that the method is not worse by more than the margin.
    """
    trained = {result.weights: result for result in results if result.method == "morl"}
    bases = {result.weights: result for result in results if result.method == "base"}
    rows: list[dict[str, Any]] = []
    for result in results:
        other = trained.get(result.weights)
        if other is None or result.method == "morl" or result.weighted is None or other.weighted is None:
            continue
        images = np.intersect1d(result.images[np.isfinite(result.weighted)], other.images[np.isfinite(other.weighted)])
        unit = _spread(bases.get(result.weights, other))
        if len(images) == 0 or not unit > 0:
            continue
        clusters = result.prompts[result.at(images)]
        difference = (result.weighted[result.at(images)] - other.weighted[other.at(images)]) / unit
        tests = equivalence(difference, margin, clusters)
        rows.append(
            {
                "method": result.method,
                "settings": result.settings,
                "weights": result.weights,
                "kl_scale": result.kl_scale,
                "r(w) - MORL, sd": clustered_interval(difference, clusters),
                "p equal": tests.p,
                "p not below": tests.p_below,
            }
        )
    plain = not any(row["settings"] for row in rows)
    return [{key: value for key, value in row.items() if key != "settings" or not plain} for row in rows]


def _spread(result: Result) -> float:
    values: Array = result.weighted if result.weighted is not None else np.empty(0)
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan
