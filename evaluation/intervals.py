"""95 % intervals of means and of shares, with pictures of the same prompt as a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """Mean and the half width of its 95 % Student t interval; the half width of a single value is nan."""
    return clustered_interval(values, np.arange(len(values)))


def clustered_interval(values: Sequence[float] | Array, clusters: NDArray[np.int64]) -> tuple[float, float]:
    """Mean of all values, and the half width of its 95 % interval when values of a cluster depend on each other.

    With the sums ``u_g = sum_{i in g} (x_i - mean)`` of G clusters the variance of the mean is
    ``G / (G - 1) sum_g u_g^2 / n^2``, and the quantile is Student's with G - 1 degrees of freedom (Liang and Zeger 1986;
    Cameron and Miller 2015, eq. 11). One value per cluster gives Student's interval.

    Args:
        values: float[n]; nan is left out.
        clusters: the cluster of each value, int[n]. If all are one cluster, every value counts as a cluster of its own:
            the interval is then for that cluster alone.

    Returns:
        Mean and half width; nan where nothing is left, or no interval exists.
    """
    array = np.asarray(values, dtype=float)
    finite = np.isfinite(array)
    array, groups = array[finite], np.unique(clusters[finite], return_inverse=True)[1]
    if len(array) == 0:
        return math.nan, math.nan
    if groups.max() == 0:
        groups = np.arange(len(array))
    count, mean = int(groups.max()) + 1, float(array.mean())
    if count < 2:
        return mean, math.nan
    sums = np.bincount(groups, weights=array - mean)
    variance = count / (count - 1) * float(np.square(sums).sum()) / len(array) ** 2
    return mean, student_quantile(count - 1) * math.sqrt(variance)


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    from scipy.special import stdtrit  # not scipy.stats, which takes seconds to import

    return float(stdtrit(freedom, 0.975))


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); the numbers may be effective ones, so they need not be whole."""
    share, z = successes / trials, _NORMAL
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return (middle - half) / (1 + z * z / trials), (middle + half) / (1 + z * z / trials)


def win_rate(wins: NDArray[np.bool_], clusters: NDArray[np.int64]) -> tuple[float, float, float]:
    """The share of wins and its 95 % Wilson interval, with the number of trials that clusters leave.

    Args:
        wins: decided comparisons, bool[n].
        clusters: the cluster of each, int[n].

    Returns:
        Share, low, high; nan without a decided comparison.
    """
    trials = len(wins)
    if trials == 0:
        return math.nan, math.nan, math.nan
    share = float(wins.mean())
    groups = np.unique(clusters, return_inverse=True)[1]
    effective = float(trials)
    count = int(groups.max()) + 1
    if 0 < share < 1 and 1 < count < trials:
        sums = np.bincount(groups, weights=wins - share)
        design = count / (count - 1) * float(np.square(sums).sum()) / trials**2 / (share * (1 - share) / trials)
        effective = trials / max(1.0, design)
    return share, *wilson_interval(share * effective, effective)
