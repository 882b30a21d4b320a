"""Means, paired differences, win rates and hypervolumes of scores, each with its 95 % interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ...blending.plans import Gates
from ..gaussian.distance import interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """One point's pictures as columns, in the order of the images, which are the same prompts and noise for every point.

    Attributes:
        method: its name.
        weights: the preference, float[m].
        kl_scale: lambda; 1 for methods that have none.
        columns: every reward, ``kl`` (nan where not measured), ``seconds``, ``calls``; float[n] each.
        weighted: ``r(w) = sum_i w_i r_i / scale_i``, float[n]; None where an adapter's reward is not measured.
    """

    method: str
    weights: Gates
    kl_scale: float
    columns: Mapping[str, Array]
    weighted: Array | None


def collect_results(
    rows: Sequence[Mapping[str, Any]], adapters: Sequence[str], rewards: Sequence[str], scales: Sequence[float]
) -> list[Result]:
    """Group a sweep's rows by point; the base, which has no weights, becomes a result for each preference.

    Args:
        rows: as ``Sweep.run`` returns them.
        adapters: names, in the order of the weights.
        rewards: names.
        scales: what each adapter's reward is divided by before it is weighed, float[m].
    """
    points: dict[tuple[str, tuple[float | None, ...], float], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["method"], tuple(row[f"w_{name}"] for name in adapters), row["kl_scale"])
        points.setdefault(key, []).append(row)
    preferences = dict.fromkeys(weights for _, weights, _ in points if None not in weights)
    results: list[Result] = []
    for (method, weights, kl_scale), found in points.items():
        columns = {name: _column(found, name) for name in (*rewards, "kl", "seconds", "calls")}
        for preference in [weights] if None not in weights else preferences:
            chosen = tuple(float(weight or 0.0) for weight in preference)
            weighted = _weighted(columns, adapters, chosen, scales)
            results.append(Result(method, chosen, 1.0 if method == "base" else kl_scale, columns, weighted))
    return results


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.asarray([math.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)


def _weighted(
    columns: Mapping[str, Array], adapters: Sequence[str], weights: Gates, scales: Sequence[float]
) -> Array | None:
    if any(name not in columns for name in adapters):
        return None
    parts = [columns[name] * (w / s) for name, w, s in zip(adapters, weights, scales, strict=True)]
    return np.sum(parts, axis=0)


def means(results: Sequence[Result], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """The table like the paper's Table 1: mean and half width of the 95 % Student t interval over pictures.

    The intervals are for these prompts. Between methods the differences of `against_blend` are sharper: prompts and noise
    are the same, and their luck cancels.
    """
    return [
        {
            "method": result.method,
            "weights": result.weights,
            "kl_scale": result.kl_scale,
            "pictures": len(result.columns["calls"]),
            **{name: interval(result.columns[name].tolist()) for name in rewards},
            **({} if result.weighted is None else {"r(w)": interval(result.weighted.tolist())}),
            "KL": interval(result.columns["kl"].tolist()),
            "s/picture": float(result.columns["seconds"].mean()),
            "calls/picture": float(result.columns["calls"].mean()),
        }
        for result in results
    ]


def within_pictures(results: Sequence[Result], name: str) -> list[tuple[float, float]]:
    """Means of a reward with the intervals that comparing the points needs, without the luck they share.

    Each picture's mean over the points (the same prompt and noise) is taken off before the 95 % Student t interval is made,
    and its half width is widened by ``sqrt(J / (J - 1))`` for J points (Cousineau 2005; Morey 2008).

    Args:
        results: J points with the same pictures.
        name: the reward.

    Returns:
        Mean and half width per point.
    """
    values = np.stack([result.columns[name] for result in results])
    own = values - values.mean(0) + values.mean()
    points = len(results)
    widened = math.sqrt(points / (points - 1)) if points > 1 else 1.0
    halves = [interval(row.tolist())[1] * widened for row in (own if points > 1 else values)]
    return [(float(mean), half) for mean, half in zip(values.mean(1), halves, strict=True)]


def against_blend(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each method against blend at the same preference and KL scale, picture by picture.

    Returns:
        Per point: mean difference of r(w) and the half width of its paired interval; its root mean square, which errors of
        both signs do not cancel in; the share of pictures with the larger r(w), ties left out, with its Wilson interval;
        how many tie.
    """
    blends = {(r.weights, r.kl_scale): r for r in results if r.method == "blend"}
    rows: list[dict[str, Any]] = []
    for result in results:
        blend = blends.get((result.weights, result.kl_scale))
        if blend is None or result.method == "blend" or result.weighted is None or blend.weighted is None:
            continue
        gap = result.weighted - blend.weighted
        differ = ~np.isclose(result.weighted, blend.weighted, rtol=1e-5, atol=1e-7)  # more than rounding
        wins, losses = int((differ & (gap > 0)).sum()), int((differ & (gap < 0)).sum())
        share, low, high = win_rate(wins, losses)
        rows.append(
            {
                "method": result.method,
                "weights": result.weights,
                "kl_scale": result.kl_scale,
                "r(w) - blend": interval(gap.tolist()),
                "rms": float(np.sqrt(np.square(gap).mean())),
                "wins": share,
                "low": low,
                "high": high,
                "ties": len(gap) - wins - losses,
            }
        )
    return rows


def win_rate(wins: int, losses: int) -> tuple[float, float, float]:
    """``wins / (wins + losses)`` and its 95 % Wilson interval; nan without a decided comparison."""
    if wins + losses == 0:
        return math.nan, math.nan, math.nan
    bounds = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    return wins / (wins + losses), float(bounds.low), float(bounds.high)


def reward_groups(adapters: Sequence[str], rewards: Sequence[str]) -> list[tuple[str, ...]]:
    """Which rewards are traded off: all pairs, and all together if three or four; adapters' own rewards where measured."""
    own = [name for name in adapters if name in rewards]
    names = own if len(own) > 1 else list(rewards)
    together = [tuple(names)] if len(names) in (3, 4) else []
    return [*itertools.combinations(names, 2), *together]


def of_group(results: Sequence[Result], adapters: Sequence[str], group: Sequence[str]) -> list[Result]:
    """The results whose preference gives nothing to adapters outside a group of rewards; all, if it names no adapters."""
    outside = [i for i, name in enumerate(adapters) if name not in group]
    if not set(group) <= set(adapters):
        return list(results)
    return [result for result in results if all(result.weights[i] == 0 for i in outside)]


def hypervolumes(
    results: Sequence[Result], adapters: Sequence[str], group: Sequence[str], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The hypervolume of each method's front of mean rewards, and a bootstrap interval over pictures.

    Each reward is scaled so that the worst of all points' means is 0 and the best is 1; the reference point is 0, so a
    hypervolume is the share of that box which the front dominates (Zitzler and Thiele 1999). Methods are compared on
    the preferences that all of them have. The bootstrap draws the same pictures for every method, and every resample
    makes its own box, so that the pictures' common luck cancels.

    Args:
        results: of one KL scale.
        adapters: names.
        group: the rewards.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Per method: ``hypervolume``, ``low``, ``high``, and the same of the difference to blend, if there is one.
    """
    chosen = of_group(results, adapters, group)
    methods = list(dict.fromkeys(result.method for result in chosen))
    if not methods:
        return []
    shared = set.intersection(*({r.weights for r in chosen if r.method == method} for method in methods))
    pictures = min(len(result.columns["calls"]) for result in chosen)
    counts = _bootstrap(pictures, resamples, seed)
    fronts: dict[str, Array] = {}  # [1 + resamples, points, rewards], first the sample itself
    for method in methods:
        own = [result for result in chosen if result.method == method and result.weights in shared]
        values = np.stack([np.stack([result.columns[name][:pictures] for name in group], -1) for result in own])
        fronts[method] = np.einsum("rn,pnk->rpk", counts, values)
    points = np.concatenate(list(fronts.values()), axis=1)
    worst, best = points.min(1, keepdims=True), points.max(1, keepdims=True)
    width = np.where(best > worst, best - worst, 1.0)
    volumes = {method: _volumes((front - worst) / width) for method, front in fronts.items()}
    return [_volume_row(method, len(shared), volumes) for method in methods]


def _bootstrap(pictures: int, resamples: int, seed: int) -> Array:
    """Each picture's share in the mean, float[1 + resamples, pictures]: evenly, then as drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    return np.concatenate([np.ones((1, pictures)), drawn]) / pictures


def _volumes(fronts: Array) -> Array:
    origin = np.zeros(fronts.shape[-1])
    return np.asarray([moocore.hypervolume(front, ref=origin, maximise=True) for front in fronts])


def _volume_row(method: str, points: int, volumes: Mapping[str, Array]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "preferences": points, **_spread("hypervolume", volumes[method], "")}
    if "blend" in volumes:
        row |= _spread("- blend", volumes[method] - volumes["blend"], "- blend, ")
    return row


def _spread(name: str, values: Array, prefix: str) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (math.nan, math.nan)
    return {name: float(values[0]), f"{prefix}low": float(low), f"{prefix}high": float(high)}
