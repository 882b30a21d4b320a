"""95 % intervals of means, ratios and shares, and tests of equality, with pictures of the same prompt as a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..artifacts.shares import wilson_interval

Array = NDArray[np.float64]


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
    mean, error, count = _mean_and_error(values, clusters)
    return mean, math.nan if count < 2 else student_quantile(count - 1) * error


def _mean_and_error(values: Sequence[float] | Array, clusters: NDArray[np.int64]) -> tuple[float, float, int]:
    """Mean, its standard error (nan for fewer than two clusters), and the number of clusters; see `clustered_interval`."""
    array = np.asarray(values, dtype=float)
    finite = np.isfinite(array)
    array, groups = array[finite], np.unique(clusters[finite], return_inverse=True)[1]
    if len(array) == 0:
        return math.nan, math.nan, 0
    if groups.max() == 0:
        groups = np.arange(len(array))
    count, mean = int(groups.max()) + 1, float(array.mean())
    if count < 2:
        return mean, math.nan, count
    sums = np.bincount(groups, weights=array - mean)
    variance = count / (count - 1) * float(np.square(sums).sum()) / len(array) ** 2
    return mean, math.sqrt(variance), count


def student_quantile(freedom: int, probability: float = 0.975) -> float:
    """A quantile of Student's t distribution, the 97.5 % one without a probability."""
    from scipy.special import stdtrit  # not scipy.stats, which takes seconds to import

    return float(stdtrit(freedom, probability))


@dataclass(frozen=True)
class Equivalence:
    """The result of `equivalence`.

    Attributes:
        mean: of the differences.
        half: half the width of its 90 % interval, the one that belongs to two one-sided tests at 5 %.
        p: of the hypothesis that the true mean is outside the margin; nan without an interval.
        p_below: of the hypothesis that it is below minus the margin (a test of non-inferiority), one half of ``p``.
    """

    mean: float
    half: float
    p: float
    p_below: float

    @property
    def is_equal(self) -> bool:
        """Whether the tests at 5 % reject every mean outside the margin."""
        return self.p < 0.05


def equivalence(values: Sequence[float] | Array, margin: float, clusters: NDArray[np.int64]) -> Equivalence:
    """Test whether a mean difference is smaller than a margin: two one-sided tests (Schuirmann 1987).

    ``p = max(P(T > (mean + margin) / se), P(T < (mean - margin) / se))`` with Student's T of G - 1 degrees of freedom. A wide
    interval around 0 is no evidence of equality, so few data give a large p.

    Args:
        values: differences, float[n]; nan is left out.
        margin: the largest difference that counts as equal, above 0.
        clusters: as in `clustered_interval`.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"an equivalence margin of {margin}: it must be above 0")
    from scipy.special import stdtr

    mean, error, count = _mean_and_error(values, clusters)
    if count < 2:
        return Equivalence(mean, math.nan, math.nan, math.nan)
    if error == 0:
        return Equivalence(mean, 0.0, 0.0 if abs(mean) < margin else 1.0, 0.0 if mean > -margin else 1.0)
    below, above = (float(stdtr(count - 1, -(sign * mean + margin) / error)) for sign in (1, -1))
    return Equivalence(mean, student_quantile(count - 1, 0.95) * error, max(below, above), below)


@dataclass(frozen=True)
class Ratio:
    """A ratio of positive numbers: the geometric mean and its 95 % interval; nan where there is none."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.low) else f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio_interval(first: Sequence[float], second: Sequence[float], clusters: NDArray[np.int64]) -> Ratio:
    """The geometric mean of paired ratios ``first / second`` and its 95 % interval, from their logarithms.

    Args:
        first: float[n], above 0.
        second: float[n], above 0.
        clusters: the cluster of each value, int[n]. One cluster alone has no interval.

    Raises:
        ValueError: a number is not above 0.
    """
    mean, half = clustered_interval(log_ratios(first, second), clusters)
    half = math.nan if len(np.unique(clusters)) < 2 else half
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def log_ratios(first: Sequence[float], second: Sequence[float]) -> Array:
    """``log(first / second)`` of positive numbers, float64[n].

    Raises:
        ValueError: a number is not above 0.
    """
    both = np.asarray([first, second], dtype=float)
    if not bool((both > 0).all()):
        raise ValueError(f"ratios of {both.min()}: every number must be above 0")
    return np.log(both[0] / both[1])


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
