"""What votes taught, as numbers for a picture: the mean utility over the mixtures, and where it is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .posterior import Posterior
from .search import Search, votes_of
from .space import Region
from .votes import Entry, Option

Array = NDArray[np.float64]

SMALLEST_REGION = 0.1
_DRAWS, _AMONG = 200, 150
_DIVISIONS = {2: 24, 3: 12}


def landscape(search: Search, entries: Sequence[Entry]) -> dict[str, Any]:
    """Describe the posterior as plain data.

    Args:
        search: the region.
        entries: the votes.

    Returns:
        ``best``: its weights and KL scale; ``spread``: for each weight and the KL scale, the 10 % and 90 % quantiles of where the
        best option may lie; ``points``: for two and three adapters, mixtures at the best KL scale as rows of weights, mean
        (0 the worst, 1 the best) and sureness (0 as unsure as before any vote, 1 certain).
    """
    posterior = search.posterior(entries)
    best = search.best(entries, posterior)
    low, high = _likely(posterior, search.region(entries))
    return {
        "best": {"weights": list(best.weights), "kl_scale": best.kl_scale},
        "spread": [[round(float(a), 3), round(float(b), 3)] for a, b in zip(low, high, strict=True)],
        "points": _shading(posterior, search, best) if votes_of(entries) else [],
    }


def _likely(posterior: Posterior, region: Region) -> tuple[Array, Array]:
    """Quantiles of the place of the maximum, over draws of the utility on the most promising points of the lattice."""
    points = region.lattice()
    bound = posterior.mean(points) + 2 * np.sqrt(posterior.variance(points))
    points = points[np.argsort(-bound, kind="stable")[:_AMONG]]
    values, vectors = np.linalg.eigh(posterior.covariance(points))
    noise = np.random.default_rng(0).standard_normal((len(points), _DRAWS))  # the same draws for the same votes
    drawn = posterior.mean(points)[:, None] + vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * noise)
    places = points[np.argmax(drawn, axis=0)]
    return np.quantile(places, 0.1, axis=0), np.quantile(places, 0.9, axis=0)


def _shading(posterior: Posterior, search: Search, best: Option) -> list[list[float]]:
    divisions = _DIVISIONS.get(search.adapters)
    if divisions is None:
        return []
    mixtures = Region(search.adapters, best.kl_scale, best.kl_scale).mixtures(divisions)
    points = np.column_stack([mixtures, np.full(len(mixtures), best.kl_scale)])
    mean = posterior.mean(points)
    height = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-9)
    sure = 1 - np.sqrt(posterior.variance(points) / np.maximum(Posterior([]).variance(points), 1e-12))
    rows = np.column_stack([mixtures, height, np.clip(sure, 0, 1)])
    return [[round(float(value), 3) for value in row] for row in rows]
