"""A search for one person's preference: which two options to show next, and which option is the best so far."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .kernels import Kernel, gaussian_process
from .posterior import Posterior
from .space import Region, option_of, points_of, rounded
from .votes import Entry, Narrowing, Option, Vote

Array = NDArray[np.float64]

SHORTLIST = 60
"""How many points are compared pair by pair."""
OPTIMISM = 1.0
"""Standard deviations that are added to the mean when points are put on the shortlist."""
ALIKE = 0.08
"""Options whose coefficients are nearer than this make pictures that nobody can tell apart."""


ROUNDING = 0.006
"""Options are in hundredths, so their KL scale can be this far outside the range."""


@dataclass(frozen=True)
class Search:
    """What is looked for; the votes are given to the methods, so that equal votes give equal answers.

    Args:
        adapters: m, at least 2.
        kl_low: the smallest KL scale.
        kl_high: the largest one.
        start: where to begin, or None.
        kernel: what is assumed of utilities.
    """

    adapters: int
    kl_low: float = 0.5
    kl_high: float = 1.5
    start: Option | None = None
    kernel: Kernel = field(default=gaussian_process, repr=False)

    def region(self, entries: Sequence[Entry]) -> Region:
        """Where the last narrowing leads."""
        whole = Region(self.adapters, self.kl_low, self.kl_high)
        narrowings = [entry for entry in entries if isinstance(entry, Narrowing)]
        return whole.narrowed(narrowings[-1]) if narrowings else whole

    def posterior(self, entries: Sequence[Entry]) -> Posterior:
        """What the votes say, those before a narrowing included."""
        return Posterior(votes_of(entries), self.kernel)

    def best(self, entries: Sequence[Entry], posterior: Posterior | None = None) -> Option:
        """The option of the largest mean utility; without a vote that prefers anything, the start or equal weights."""
        posterior = posterior or self.posterior(entries)
        region = self.region(entries)
        points = region.lattice()
        means = posterior.mean(points)
        if not votes_of(entries):
            return self.middle(region)
        return option_of(_climb(posterior, region, points[int(np.argmax(means))]))

    def middle(self, region: Region) -> Option:
        """The start, or equal weights at the KL scale of the range that is nearest to 1."""
        if region.centre:
            return option_of(region.centre)
        if self.start is not None:
            return option_of(points_of([self.start])[0])
        return option_of([*[1.0 / self.adapters] * self.adapters, min(max(1.0, self.kl_low), self.kl_high)])

    def next_pair(self, entries: Sequence[Entry], posterior: Posterior | None = None) -> tuple[Option, Option]:
        """The two options to show next.

        First every adapter alone (and the start) is shown once. Then the pair is chosen whose better option is expected to be the
        best, ``E max(f(a), f(b))`` (EUBO, Lin et al. 2022, arXiv 2203.11382), among pairs that were not shown yet.

        Args:
            entries: the votes so far.
            posterior: theirs, where it is known already.
        """
        region, posterior = self.region(entries), posterior or self.posterior(entries)
        first = self._first_visits(entries, region, posterior)
        if first is not None:
            return first
        points = region.lattice()
        shown = _shown(entries, region)
        if not region.centre and shown:  # what was shown before a narrowing lies outside
            points = np.vstack([points, points_of(shown)])
        mean, variance = posterior.moments(points)
        nearby = region.around(_climb(posterior, region, points[int(np.argmax(mean))]))
        points = np.vstack([points, nearby])
        more = posterior.moments(nearby)
        bound = np.append(mean, more[0]) + OPTIMISM * np.sqrt(np.append(variance, more[1]))
        chosen = points[np.argsort(-bound, kind="stable")[:SHORTLIST]]
        chosen = rounded(chosen)
        points = chosen[np.sort(np.unique(chosen, axis=0, return_index=True)[1])]
        value = expected_best(posterior.mean(points), posterior.covariance(points))
        value[_distances(points) < ALIKE * max(region.within, 0.25)] = -math.inf
        return _ordered(_best_new_pair(points, value, votes_of(entries)), len(votes_of(entries)))

    def _first_visits(
        self, entries: Sequence[Entry], region: Region, posterior: Posterior
    ) -> tuple[Option, Option] | None:
        """A pair of options that every search begins with, until each was shown; an odd one meets the best so far."""
        if region.centre:
            return None
        wanted = [self.middle(region), *region.corners(self.middle(region).kl_scale)]
        wanted = wanted if self.start is not None else wanted[1:]
        shown = _shown(entries, region)
        left = [option for option in dict.fromkeys(wanted) if option not in shown]
        if len(left) >= 2:
            return left[0], left[1]
        if not left or not shown:
            return None
        others = [option for option in shown if option != left[0]]
        means = posterior.mean(points_of(others))
        return left[0], others[int(np.argmax(means))]


@functools.lru_cache(maxsize=1024)
def proposed(search: Search, entries: tuple[Entry, ...]) -> tuple[Option, Option]:
    """`Search.next_pair`, remembered: short votes ask for every pair from the first one on, at each run."""
    return search.next_pair(entries)


def votes_of(entries: Sequence[Entry]) -> list[Vote]:
    """The votes among the entries."""
    return [entry for entry in entries if isinstance(entry, Vote)]


def expected_best(mean: Array, covariance: Array) -> Array:
    """``E max(f(a), f(b)) = mean_a Phi(d) + mean_b Phi(-d) + s phi(d)`` with ``d = (mean_a - mean_b) / s`` (Clark 1961).

    Args:
        mean: float[N].
        covariance: float[N, N].

    Returns:
        float[N, N], symmetric; s is the standard deviation of the difference.
    """
    from scipy.special import ndtr

    variance = np.diag(covariance)
    spread = np.sqrt(np.maximum(variance[:, None] + variance[None] - 2 * covariance, 1e-12))
    d = (mean[:, None] - mean[None]) / spread
    density = np.exp(-(d**2) / 2) / math.sqrt(2 * math.pi)
    return mean[:, None] * ndtr(d) + mean[None] * ndtr(-d) + spread * density


def _climb(posterior: Posterior, region: Region, point: Array) -> Array:
    """The best point by moves of falling length, from a point on."""
    value = float(posterior.mean(point[None])[0])
    for _ in range(8):
        points = region.around(point)
        means = posterior.mean(points)
        at = int(np.argmax(means))
        if means[at] <= value + 1e-9:
            return point
        point, value = points[at], float(means[at])
    return point


def _best_new_pair(points: Array, value: Array, votes: Sequence[Vote]) -> tuple[Option, Option]:
    """The pair of the largest value that no vote is about; if all were shown, the best of all."""
    seen = {frozenset((vote.first, vote.second)) for vote in votes}
    upper = np.triu_indices(len(points), 1)
    order = np.argsort(-value[upper], kind="stable")[: len(seen) + 1]
    pairs = ((option_of(points[upper[0][i]]), option_of(points[upper[1][i]])) for i in order)
    best = next(pairs)
    return best if frozenset(best) not in seen else next((pair for pair in pairs if frozenset(pair) not in seen), best)


def _ordered(pair: tuple[Option, Option], votes: int) -> tuple[Option, Option]:
    """Which of the two is on the left: in turns, so that a habit of choosing one side does not look like a taste."""
    low, high = sorted(pair, key=lambda option: (option.weights, option.kl_scale))
    return (low, high) if votes % 2 else (high, low)


def _shown(entries: Sequence[Entry], region: Region) -> list[Option]:
    """The options that votes are about. Pictures made before may have been voted on: those outside the KL range are left out."""
    low, high = region.kl_limits
    options = dict.fromkeys(option for vote in votes_of(entries) for option in (vote.first, vote.second))
    return [option for option in options if low - ROUNDING <= option.kl_scale <= high + ROUNDING]


def _distances(points: Array) -> Array:
    coefficients = points[:, :-1] * points[:, -1:]
    return np.linalg.norm(coefficients[:, None] - coefficients[None], axis=-1)
