"""Tables in the paper's form: a row per preference, each method's rewards side by side, and what is paired with the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...artifacts.tables import markdown_table
from ..intervals import clustered_interval
from ..sweep.figures import label, write_weights
from ..sweep.statistics import Result, paired_row

PAPER_NAMES = {
    "base": "SD",
    "morl": "MORL",
    "blend": "DB-MPA",
    "stochastic": "DB-MPA-LS",
    "stochastic-independent": "DB-MPA-LS, independent draws",
    "soup": "RS",
    "factor-soup": "RS of factors",
}
"""Method -> its name in the paper's tables, where it is another one."""


def paper_report(title: str, results: Sequence[Result], rewards: Sequence[str], form: str) -> str:
    """The report of an experiment as Markdown.

    Args:
        title: of the experiment.
        results: of its sweep.
        rewards: in the order of the columns.
        form: ``absolute`` or ``gain``.
    """
    names = ", ".join(f"r{number} = {name}" for number, name in enumerate(rewards, start=1))
    gains = gain_rows(results, rewards)
    main = main_rows(results, rewards) if form == "absolute" else wide_gains(gains, rewards)
    parts = [f"# {title}\n\n{names}.\n", markdown_table(main)]
    if gains:
        text = "Paired with the base: same prompts and noise. Half widths of 95 % intervals, pictures of a prompt as a cluster."
        parts += [f"{text}\n", markdown_table(gains)]
    return "\n".join(parts)


def _name(result: Result) -> str:
    return PAPER_NAMES.get(result.method, label(result.method, result.settings))


def _row_name(result: Result, several_scales: bool) -> str:
    text = write_weights(result.weights)
    return f"{text}, KL scale {result.kl_scale:g}" if several_scales and result.method != "base" else text


def main_rows(results: Sequence[Result], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """Mean rewards as in Tables 1, 5 and 7: a row per preference, and the seconds of a picture below.

    The base, which has no KL scale, fills its columns in every row of its preference.
    """
    several = len({result.kl_scale for result in results if result.method != "base"}) > 1
    methods = list(dict.fromkeys(_name(result) for result in results))
    others = [result for result in results if result.method != "base"] or list(results)
    rows: list[dict[str, Any]] = []
    for weights, kl_scale in dict.fromkeys((result.weights, result.kl_scale) for result in others):
        here = [r for r in results if r.weights == weights and (r.kl_scale == kl_scale or r.method == "base")]
        of_method = {_name(result): result for result in here}
        named = next(result for result in others if (result.weights, result.kl_scale) == (weights, kl_scale))
        row: dict[str, Any] = {"w": _row_name(named, several)}
        for method in methods:
            for number, reward in enumerate(rewards, start=1):
                found = of_method.get(method)
                row[f"{method} r{number}"] = math.nan if found is None else float(np.nanmean(found.columns[reward]))
        rows.append(row)
    seconds: dict[str, Any] = {"w": "seconds a picture"}
    for method in methods:
        own = [float(result.columns["seconds"].mean()) for result in results if _name(result) == method]
        seconds |= {f"{method} r{number}": math.nan for number in range(1, len(rewards) + 1)}
        seconds[f"{method} r1"] = sum(own) / len(own)
    return [*rows, seconds]


def gain_rows(results: Sequence[Result], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """Paired differences to the base per reward, their mean over the rewards, and the win rate of r(w)."""
    bases = {result.weights: result for result in results if result.method == "base"}
    several = len({result.kl_scale for result in results if result.method != "base"}) > 1
    rows: list[dict[str, Any]] = []
    for result in results:
        base = bases.get(result.weights)
        if base is None or result.method == "base":
            continue
        images = np.intersect1d(result.images, base.images)
        ours, theirs = result.at(images), base.at(images)
        clusters = result.prompts[ours]
        gains = {name: result.columns[name][ours] - base.columns[name][theirs] for name in rewards}
        paired = paired_row(result, base, "r(w)") or {"r(w)": (math.nan, math.nan), "wins": math.nan}
        row: dict[str, Any] = {"method": _name(result), "w": _row_name(result, several), "pictures": len(images)}
        row |= {f"d r{k}": clustered_interval(gains[name], clusters) for k, name in enumerate(rewards, start=1)}
        used = [name for name in _weighed(result, rewards)] or list(rewards)
        row["mean"] = clustered_interval(np.mean([gains[name] for name in used], axis=0), clusters)
        row |= {"d r(w)": paired["r(w)"], "wins": paired["wins"]}
        row |= {"low": paired.get("low", math.nan), "high": paired.get("high", math.nan)}
        rows.append(row)
    return rows


def _weighed(result: Result, rewards: Sequence[str]) -> list[str]:
    """The rewards that the preference weighs, where rewards and weights are of the same number."""
    if len(rewards) != len(result.weights):
        return []
    return [name for name, weight in zip(rewards, result.weights, strict=True) if weight > 0]


def wide_gains(gains: Sequence[dict[str, Any]], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """Gains over the base as in Tables 3 and 6: a row per preference, each method's gains side by side, then their mean."""
    methods = list(dict.fromkeys(row["method"] for row in gains))
    rows: list[dict[str, Any]] = []
    for w in dict.fromkeys(row["w"] for row in gains):
        found = {row["method"]: row for row in gains if row["w"] == w}
        cells: dict[str, Any] = {"w": w}
        for method in methods:
            for column in [*(f"d r{k}" for k in range(1, len(rewards) + 1)), "mean"]:
                cells[f"{method} {column}"] = found[method][column][0] if method in found else math.nan
        rows.append(cells)
    return rows
