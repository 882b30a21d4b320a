"""Means, paired differences, win rates and hypervolumes of scores, each with its 95 % interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blending.plans import Gates
from ..intervals import Array, clustered_interval, win_rate
from .path_shares import mean_share


@dataclass(frozen=True)
class Result:
    """One point's pictures as columns. An image number stands for the same prompt and noise at every point.

    Attributes:
        method: its name.
        weights: the preference, float[m].
        kl_scale: lambda; 1 for methods that have none.
        columns: every reward, ``kl`` and ``log_weight`` (nan where not measured), ``seconds``, ``calls``; float[n] each.
        weighted: ``r(w) = sum_i w_i r_i / scale_i``, float[n]; None where an adapter's reward is not measured.
        images: the image numbers, ascending, int[n].
        prompts: the number of each image's prompt, int[n].
        settings: the method's own settings, where the sweep has several of them; else empty.
    """

    method: str
    weights: Gates
    kl_scale: float
    columns: Mapping[str, Array]
    weighted: Array | None
    images: NDArray[np.int64]
    prompts: NDArray[np.int64]
    settings: str = ""

    def interval(self, values: Array) -> tuple[float, float]:
        """Mean and half width of the 95 % interval of one of this point's columns, clustered by prompt."""
        return clustered_interval(values, self.prompts)

    def at(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of some of its images in its columns."""
        return np.searchsorted(self.images, images)


def collect_results(
    rows: Sequence[Mapping[str, Any]], adapters: Sequence[str], rewards: Sequence[str], scales: Sequence[float]
) -> list[Result]:
    """Group a sweep's rows by point; the base, which has no weights, becomes a result for each preference.

    Args:
        rows: as ``Sweep.run`` returns them.
        adapters: names, in the order of the weights.
        rewards: names.
        scales: the number by which each adapter's reward is divided before it is weighed, float[m].
    """
    points: dict[tuple[str, str, tuple[float | None, ...], float], list[Mapping[str, Any]]] = {}
    for row in rows:
        weights = tuple(row[f"w_{name}"] for name in adapters)
        points.setdefault((row["method"], row.get("settings", ""), weights, row["kl_scale"]), []).append(row)
    preferences = dict.fromkeys(weights for _, _, weights, _ in points if None not in weights)
    variants = {method: {key[1] for key in points if key[0] == method} for method in {key[0] for key in points}}
    prompts = {text: number for number, text in enumerate(dict.fromkeys(_prompt(row) for row in rows))}
    results: list[Result] = []
    for (method, settings, weights, kl_scale), found in points.items():
        found = sorted(found, key=lambda row: row["image"])
        columns = {name: _column(found, name) for name in (*rewards, "kl", "seconds", "calls", "log_weight")}
        images = np.asarray([row["image"] for row in found], dtype=np.int64)
        clusters = np.asarray([prompts[_prompt(row)] for row in found], dtype=np.int64)
        for preference in [weights] if None not in weights else preferences:
            chosen = tuple(float(weight or 0.0) for weight in preference)
            scale, own = 1.0 if method == "base" else kl_scale, settings if len(variants[method]) > 1 else ""
            weighted = _weighted(columns, adapters, chosen, scales)
            results.append(Result(method, chosen, scale, columns, weighted, images, clusters, own))
    return results


def _prompt(row: Mapping[str, Any]) -> Any:
    return row.get("prompt", row["image"])


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.asarray([math.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)


def _weighted(
    columns: Mapping[str, Array], adapters: Sequence[str], weights: Gates, scales: Sequence[float]
) -> Array | None:
    if any(name not in columns for name in adapters):
        return None
    parts = [columns[name] * (w / s) for name, w, s in zip(adapters, weights, scales, strict=True)]
    return np.sum(parts, axis=0)


def means(results: Sequence[Result], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """The table like the paper's Table 1: mean and half width of the 95 % interval, pictures clustered by prompt.

    Between methods the differences of `against_blend` are sharper, because the variation of shared prompts and noise cancels.
    Where the sampler adds noise and prompts have several pictures, the blend has an effective share (`path_shares.mean_share`).
    """
    shares = {id(result): mean_share(result.columns["log_weight"], result.prompts) for result in results}
    return [
        {
            "method": result.method,
            **({"settings": result.settings} if any(other.settings for other in results) else {}),
            "weights": result.weights,
            "kl_scale": result.kl_scale,
            "pictures": len(result.images),
            **{name: result.interval(result.columns[name]) for name in rewards},
            **({} if result.weighted is None else {"r(w)": result.interval(result.weighted)}),
            "KL": result.interval(result.columns["kl"]),
            "s/picture": float(result.columns["seconds"].mean()),
            "calls/picture": float(result.columns["calls"].mean()),
            **({} if np.isnan(list(shares.values())).all() else {"effective share": shares[id(result)]}),
        }
        for result in results
    ]


def shared_images(results: Sequence[Result], names: Sequence[str]) -> NDArray[np.int64]:
    """The images that every result has, with a value for each of the named columns."""
    shared: NDArray[np.int64] | None = None
    for result in results:
        known = np.all([np.isfinite(result.columns[name]) for name in names], axis=0)
        shared = result.images[known] if shared is None else np.intersect1d(shared, result.images[known])
    return np.asarray([], dtype=np.int64) if shared is None else shared


def within_pictures(results: Sequence[Result], name: str) -> list[tuple[float, float]]:
    """Means of a reward with the intervals that comparing the points needs, without the variation that they share.

    Each picture's mean over the points (the same prompt and noise) is subtracted before the 95 % interval is made, and its
    half width is widened by ``sqrt(J / (J - 1))`` for J points (Cousineau 2005; Morey 2008). Pictures of a prompt are a
    cluster.

    Args:
        results: J points; the pictures that all of them have are compared.
        name: the reward.

    Returns:
        Mean and half width per point.
    """
    images = shared_images(results, [name])
    if len(images) == 0:
        return [(math.nan, math.nan)] * len(results)
    values = np.stack([result.columns[name][result.at(images)] for result in results])
    own = values - values.mean(0) + values.mean()
    points = len(results)
    widened = math.sqrt(points / (points - 1)) if points > 1 else 1.0
    clusters = results[0].prompts[results[0].at(images)]
    halves = [clustered_interval(row, clusters)[1] * widened for row in (own if points > 1 else values)]
    return [(float(mean), half) for mean, half in zip(values.mean(1), halves, strict=True)]


def against_blend(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Paired comparison of every method with blend at the same preference and KL scale, picture by picture.

    Returns:
        Rows with the mean of ``r(w) - r(w) of blend`` and its half width, the root of its mean square (methods can be far
        apart picture by picture and alike in the mean), the share of pictures with the larger r(w), ties left out, with
        its Wilson interval, and the number of ties.
    """
    blends = {(r.weights, r.kl_scale): r for r in results if r.method == "blend"}
    rows: list[dict[str, Any]] = []
    for result in results:
        blend = blends.get((result.weights, result.kl_scale))
        if blend is None or result.method == "blend":
            continue
        row = paired_row(result, blend)
        if row is not None:
            rows.append({"method": result.method, "settings": result.settings, **row})
    return rows if any(row["settings"] for row in rows) else [_without_settings(row) for row in rows]


def _without_settings(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "settings"}


def paired_row(result: Result, other: Result, name: str = "r(w) - blend") -> dict[str, Any] | None:
    """Compare two points picture by picture; None where they share no picture with a value."""
    if result.weighted is None or other.weighted is None:
        return None
    images = np.intersect1d(result.images[np.isfinite(result.weighted)], other.images[np.isfinite(other.weighted)])
    if len(images) == 0:
        return None
    ours, theirs = result.weighted[result.at(images)], other.weighted[other.at(images)]
    clusters, difference = result.prompts[result.at(images)], ours - theirs
    decided = ~np.isclose(ours, theirs, rtol=1e-5, atol=1e-7)  # more than rounding
    share, low, high = win_rate(difference[decided] > 0, clusters[decided])
    return {
        "weights": result.weights,
        "kl_scale": result.kl_scale,
        name: clustered_interval(difference, clusters),
        "rms": float(np.sqrt(np.square(difference).mean())),
        "wins": share,
        "low": low,
        "high": high,
        "ties": int((~decided).sum()),
    }


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
    the preferences and pictures that all of them have. The bootstrap draws the same prompts for every method, and every
    resample makes its own box, so that the variation that all methods share cancels.

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
    methods = list(dict.fromkeys((result.method, result.settings) for result in chosen))
    images = shared_images(chosen, group)
    if not methods or len(images) == 0:
        return []
    shared = set.intersection(*({r.weights for r in chosen if (r.method, r.settings) == key} for key in methods))
    counts = _bootstrap(chosen[0].prompts[chosen[0].at(images)], resamples, seed)
    fronts: dict[tuple[str, str], Array] = {}  # [1 + resamples, points, rewards], first the sample itself
    for key in methods:
        own = [result for result in chosen if (result.method, result.settings) == key and result.weights in shared]
        values = [np.stack([result.columns[name][result.at(images)] for name in group], -1) for result in own]
        fronts[key] = np.einsum("rn,pnk->rpk", counts, np.stack(values))
    points = np.concatenate(list(fronts.values()), axis=1)
    worst, best = points.min(1, keepdims=True), points.max(1, keepdims=True)
    width = np.where(best > worst, best - worst, 1.0)
    volumes = {key: _volumes((front - worst) / width) for key, front in fronts.items()}
    return [_volume_row(key, len(shared), volumes) for key in methods]


def _bootstrap(prompts: NDArray[np.int64], resamples: int, seed: int) -> Array:
    """Each picture's share in the mean, float[1 + resamples, n]: evenly, then with whole prompts drawn with replacement."""
    groups = np.unique(prompts, return_inverse=True)[1]
    if groups.max() == 0:  # one prompt: its pictures are drawn
        groups = np.arange(len(prompts))
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    shares = np.concatenate([np.ones((1, count)), drawn])[:, groups]
    return shares / shares.sum(1, keepdims=True)


def _volumes(fronts: Array) -> Array:
    import moocore

    origin = np.zeros(fronts.shape[-1])
    return np.asarray([moocore.hypervolume(front, ref=origin, maximise=True) for front in fronts])


def _volume_row(key: tuple[str, str], points: int, volumes: Mapping[tuple[str, str], Array]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": key[0]}
    if any(settings for _, settings in volumes):
        row["settings"] = key[1]
    row |= {"preferences": points, **_spread("hypervolume", volumes[key], "")}
    if ("blend", "") in volumes:
        row |= _spread("- blend", volumes[key] - volumes["blend", ""], "- blend, ")
    return row


def _spread(name: str, values: Array, prefix: str) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (math.nan, math.nan)
    return {name: float(values[0]), f"{prefix}low": float(low), f"{prefix}high": float(high)}
