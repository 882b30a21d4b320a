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
_ROWS = 6
"""Rows of points between a polygon's centre and a corner."""


def landscape(search: Search, entries: Sequence[Entry], posterior: Posterior) -> dict[str, Any]:
    """Describe the posterior as plain data.

    Args:
        search: the region.
        entries: the votes.
        posterior: theirs.

    Returns:
        ``best``: its weights and KL scale; ``spread``: for each weight and the KL scale, the 10 % and 90 % quantiles of where the
        best option may lie; ``points``: the mixtures of `pad_mixtures` at the best KL scale as rows of weights, mean (0 the
        worst, 1 the best) and sureness (0 as unsure as before any vote, 1 certain); none without a vote.
    """
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
    mixtures = pad_mixtures(search.adapters)
    points = np.column_stack([mixtures, np.full(len(mixtures), best.kl_scale)])
    mean, variance = posterior.moments(points)
    height = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-9)
    sure = 1 - np.sqrt(variance / np.maximum(Posterior([], search.kernel).variance(points), 1e-12))
    rows = np.column_stack([mixtures, height, np.clip(sure, 0, 1)])
    return [[round(float(value), 3) for value in row] for row in rows]


def pad_mixtures(adapters: int) -> Array:
    """The mixtures that the pad in the browser can choose, at even steps over its shape, float[N, m].

    Two and three adapters: a line and a triangle, all mixtures. More: a regular polygon, whose points stand for Wachspress'
    coordinates (web/pad/coordinates.js). A mixture that lies at no point of the polygon is left out.
    """
    if adapters in _DIVISIONS:
        return Region(adapters, 1, 1).mixtures(_DIVISIONS[adapters])
    turns = 2 * np.pi * np.arange(adapters) / adapters
    corners = np.column_stack([np.cos(turns), np.sin(turns)])
    rows, columns = np.mgrid[-_ROWS : _ROWS + 1, -_ROWS : _ROWS + 1].reshape(2, -1)
    grid = np.column_stack([columns + 0.5 * (rows % 2), rows * np.sqrt(0.75)]) / _ROWS
    edges = np.roll(corners, -1, axis=0) - corners
    areas = edges[:, 0] * (grid[:, None, 1] - corners[:, 1]) - edges[:, 1] * (grid[:, None, 0] - corners[:, 0])
    areas = np.maximum(areas[(areas > -1e-9).all(axis=1)], 0)  # inside every edge
    others = np.stack([np.delete(areas, [i - 1, i], axis=1).prod(axis=1) for i in range(adapters)], axis=1)
    return others / others.sum(axis=1, keepdims=True)
