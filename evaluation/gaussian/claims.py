"""What the learned study says: ratios of distances with intervals, and tests of equality, for each setting and pooled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..intervals import Equivalence, equivalence, log_ratios, ratio_interval
from .learned_study import Measured, title

MARGIN = 1.25
"""Distances whose ratio is between 1 / 1.25 and 1.25 count as equal: the margin that is usual for bioequivalence."""

RATIOS = (("soup", "blend"), ("stochastic, stratified", "blend"), ("blend", "trained for w"), ("soup", "trained for w"))
EQUALITIES = RATIOS[1:3]

Seeds = NDArray[np.int64]


def ratio_table(measured: Measured) -> list[dict[str, Any]]:
    """The geometric mean over seeds of each ratio of `RATIOS` with its 95 % interval, for each setting and for groups of them.

    In a group the settings of a seed share their base network, so a seed counts as a cluster.
    """
    return [
        {"rewards": name, "alpha": alpha}
        | {f"{a} / {b}": str(ratio_interval(_column(rows, a), _column(rows, b), seeds)) for a, b in RATIOS}
        for name, alpha, rows, seeds in _groups(measured)
    ]


def equality_table(measured: Measured) -> list[dict[str, Any]]:
    """Whether the ratios of `EQUALITIES` are within `MARGIN`, for each setting and for groups of them."""
    return [
        {"rewards": name, "alpha": alpha}
        | {f"{a} / {b}": _verdict(_test(_column(rows, a), _column(rows, b), seeds)) for a, b in EQUALITIES}
        for name, alpha, rows, seeds in _groups(measured)
    ]


def _groups(measured: Measured) -> Iterator[tuple[str, str, list[dict[str, float]], Seeds]]:
    for (names, alpha), rows in measured.items():
        yield title(names), f"{alpha:g}", rows, np.arange(len(rows))
    for label, chosen in (
        ("all, alpha 1 and 2", [setting for setting in measured if setting[1] >= 1]),
        ("all, alpha .5", [setting for setting in measured if setting[1] == 0.5]),
        ("all, alpha .25", [setting for setting in measured if setting[1] == 0.25]),
        ("all", list(measured)),
    ):
        if chosen and len(measured[chosen[0]]) > 1:  # with one seed there is nothing to pool over
            rows = [row for setting in chosen for row in measured[setting]]
            yield label, "pooled", rows, np.concatenate([np.arange(len(measured[setting])) for setting in chosen])


def _column(rows: list[dict[str, float]], method: str) -> list[float]:
    return [row[method] for row in rows]


def _test(first: list[float], second: list[float], seeds: Seeds) -> Equivalence:
    return equivalence(log_ratios(first, second), math.log(MARGIN), seeds)


def _verdict(test: Equivalence) -> str:
    verdict = "equal" if test.is_equal else "not shown"
    low, high = math.exp(test.mean - test.half), math.exp(test.mean + test.half)
    return f"{verdict}: {low:.2f} to {high:.2f}, p {test.p:.1g}"
