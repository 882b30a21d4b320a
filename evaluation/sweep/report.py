"""A finished sweep's files: tables as Markdown, CSV and JSON, figures, grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...artifacts.files import write_atomically
from ...artifacts.tables import csv_bytes, json_bytes, markdown_table
from .comparisons import MARGIN, against_trained
from .config import SweepConfig
from .external_scores import external_rewards
from .figures import label, pareto_figure, scale_figure, write_weights
from .methods import is_scaled
from .picture_grid import picture_grid, write_cells
from .records import Row
from .run import Sweep
from .statistics import Result, against_blend, collect_results, hypervolumes, means, reward_groups


def write_report(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Write ``summary.md``, ``.csv`` and ``.json``, ``pareto.png``, ``kl_scale.png`` and ``pictures.png``.

    Args:
        sweep: finished.
        rows: the rows that it returned.

    Returns:
        The Markdown text.
    """
    config, folder = sweep.config, sweep.records.folder
    adapters = list(config.adapters)
    rewards = [*sweep.records.rewards(), *external_rewards(folder / "external")]
    results = collect_results(rows, adapters, rewards, sweep.scales)
    tables = make_tables(results, adapters, rewards, config)
    text = _markdown(sweep, results, tables)
    write_atomically(folder / "summary.md", text.encode())
    write_atomically(folder / "summary.json", json_bytes({"settings": sweep.records.settings(), **tables}))
    write_atomically(folder / "summary.csv", _csv(tables["means"]))
    pairs = [(group[0], group[1]) for group in reward_groups(adapters, rewards) if len(group) == 2]
    if pairs and results:
        write_atomically(folder / "pareto.png", pareto_figure(results, adapters, pairs))
    if len({result.kl_scale for result in results}) > 1:
        write_atomically(folder / "kl_scale.png", scale_figure(results))
    cells, prompts = write_cells(sweep)
    if cells:
        write_atomically(folder / "pictures.png", picture_grid(cells, prompts))
    return text


def make_tables(
    results: Sequence[Result], adapters: Sequence[str], rewards: Sequence[str], config: SweepConfig
) -> dict[str, list[dict[str, Any]]]:
    """All tables of a sweep.

    Hypervolumes are over the preferences that all methods have. Methods with ``method_weights`` have preferences of their own,
    so they are left out there.
    """
    volumes: list[dict[str, Any]] = []
    varied = {result.kl_scale for result in results if is_scaled(result.method)}
    for kl_scale in sorted(varied or {result.kl_scale for result in results}):
        here = [result for result in results if result.kl_scale == kl_scale or not is_scaled(result.method)]
        here = [result for result in here if result.method not in config.method_weights]
        for group in reward_groups(adapters, rewards):
            found = hypervolumes(here, adapters, group, config.resamples, config.seed)
            # One point is no front: the base, and a sweep of one preference.
            fronts = [row for row in found if row["method"] != "base" and row["preferences"] > 1]
            volumes += [{"rewards": " / ".join(group), "kl_scale": kl_scale, **row} for row in fronts]
    return {
        "means": means(results, rewards),
        "against blend": against_blend(results),
        "against trained": against_trained(results),
        "hypervolume": _aligned(volumes),
    }


def _aligned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns of all of them: a KL scale without blend has no differences from blend."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "" if name == "settings" else math.nan) for name in names} for row in rows]


def _markdown(sweep: Sweep, results: Sequence[Result], tables: Mapping[str, list[dict[str, Any]]]) -> str:
    config = sweep.config
    units = "" if config.reward_units == "as_given" else ", each reward in units of its adapter's KL weight"
    head = (
        f"# Sweep\n\nbase {config.base.path}; {_counts(results)} pictures a point, {len(sweep.prompts)} prompts, seed "
        f"{config.seed}; {config.steps} {config.scheduler or 'DDIM'} steps, eta {config.eta:g}, guidance "
        f"{config.guidance_scale:g}.\n"
        f"Weights: {'/'.join(config.adapters)}{units}. Mean and half width of the 95 % interval, "
        "pictures of a prompt as a cluster.\n"
    )
    several = len({result.kl_scale for result in results}) > 1
    sections = [("## Rewards", tables["means"])]
    sections.append(("## Against blend: same prompts and noise, picture by picture", tables["against blend"]))
    sections.append(
        (
            f"## Against MORL: same prompts and noise, in standard deviations of the base's r(w), margin {MARGIN:g}",
            tables["against trained"],
        )
    )
    sections.append(
        (
            "## Hypervolume: share of the box between the worst and the best mean, bootstrap intervals",
            tables["hypervolume"],
        )
    )
    return head + "".join(
        f"\n{title}\n\n{markdown_table([_readable(row, several) for row in rows])}" for title, rows in sections if rows
    )


def _counts(results: Sequence[Result]) -> str:
    counts = [len(result.images) for result in results] or [0]
    return f"{counts[0]}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _readable(row: Mapping[str, Any], several_scales: bool) -> dict[str, Any]:
    shown = {key: value for key, value in row.items() if key != "kl_scale" or several_scales}
    shown["method"] = label(row["method"])
    if "weights" in row:
        shown["weights"] = write_weights(row["weights"])
    return shown


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    flat = [
        {
            name: value
            for key, cell in row.items()
            for name, value in (
                ((key, cell[0]), (f"{key} +-", cell[1]))
                if isinstance(cell, tuple) and key != "weights"
                else ((key, write_weights(cell) if key == "weights" else cell),)
            )
        }
        for row in rows
    ]
    return csv_bytes(flat)
