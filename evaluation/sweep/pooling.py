"""Means over sweeps of several trainings: the trainings are the sample, so an interval says what another training may give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..intervals import equivalence, interval
from .comparisons import MARGIN
from .figures import label, write_weights

TABLES = {"against blend": "r(w) - blend", "against trained": "r(w) - MORL, sd"}
"""Tables of a sweep's ``summary.json`` -> the column that is pooled."""

COMMON = (
    "steps",
    "eta",
    "scheduler",
    "scheduler_options",
    "guidance_scale",
    "reward_units",
    "affine",
    "prompts",
)
"""Settings in which sweeps that are pooled agree. Their adapters have the same names in the same order, too."""

Cells = Mapping[str, Mapping[tuple[float, ...], float]]
"""Method -> preference -> mean difference in one sweep."""


def check_alike(files: Sequence[Path]) -> None:
    """Check that sweeps differ in nothing but the trainings and the noise.

    Args:
        files: ``summary.json`` or folders of sweeps. A summary without settings (of an earlier version, or shortened by hand) is
            not checked.

    Raises:
        ValueError: a setting of `COMMON` or the adapters' names differ.
    """
    known = [(file, found) for file in files if (found := _settings(file)) is not None]
    for file, found in known[1:]:
        first_file, first = known[0]
        for name in first:
            if first[name] != found[name]:
                raise ValueError(
                    f"{name} is {first[name]!r} in {first_file} and {found[name]!r} in {file}: pool sweeps of the same settings"
                )


def _settings(file: Path) -> dict[str, Any] | None:
    settings = _content(file).get("settings")
    if not isinstance(settings, dict):
        return None
    return {"adapters": list(settings.get("adapters", [])), **{name: settings.get(name) for name in COMMON}}


def _content(file: Path) -> dict[str, Any]:
    path = file / "summary.json" if file.is_dir() else file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_a_summary(path, getattr(error, "strerror", None) or error) from error
    if not isinstance(content, dict):
        raise _not_a_summary(path, "no table")
    return content


def _not_a_summary(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"{path} is no summary of a sweep ({reason}): give folders of finished sweeps, or their summary.json"
    )


def read_differences(file: Path, table: str) -> dict[str, dict[tuple[float, ...], float]]:
    """Read one of `TABLES` from a sweep's ``summary.json``, at KL scale 1.

    Args:
        file: the file, or the sweep's folder.
        table: a name of `TABLES`.

    Raises:
        ValueError: the file is no summary of a sweep.
    """
    return _read(file, table, lambda row: row[TABLES[table]][0])


def read_objectives(file: Path, kl_weight: float) -> dict[str, dict[tuple[float, ...], float]]:
    """The objective of the trainings, ``mean r(w) - kl_weight mean KL``, less that of MORL at the same preference.

    Args:
        file: see `read_differences`. The sweep measured the KL.
        kl_weight: of the trainings, in units of r(w) per nat.

    Raises:
        ValueError: the file is no summary of a sweep with a KL and adapters trained for the mixtures.
    """

    def objective(row: Mapping[str, Any]) -> float | None:
        return None if row["KL"][0] is None else row["r(w)"][0] - kl_weight * row["KL"][0]

    found = _read(file, "means", objective)
    trained = found.get("morl", {})
    if not trained:
        raise ValueError(f"{file} has no KL of an adapter trained for a mixture: sweep morl with --measure_kl true")
    shared = {
        method: {w: value - trained[w] for w, value in row.items() if w in trained} for method, row in found.items()
    }
    return {method: row for method, row in shared.items() if row and method != "morl"}


def _read(
    file: Path, table: str, value_of: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, dict[tuple[float, ...], float]]:
    content = _content(file)
    try:
        rows = content[table]
        found: dict[str, dict[tuple[float, ...], float]] = {}
        for row in rows:
            value = value_of(row)
            if row.get("kl_scale", 1.0) == 1.0 and not row.get("settings") and value is not None:
                found.setdefault(row["method"], {})[tuple(round(float(w), 6) for w in row["weights"])] = float(value)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _not_a_summary(file, error) from error
    return found


def less_reference(sweep: Cells, reference: str) -> dict[str, dict[tuple[float, ...], float]]:
    """Differences from blend as differences from another method, where the sweep has it.

    Args:
        sweep: the differences from blend; blend's own, 0, is added.
        reference: a method.

    Raises:
        ValueError: the sweep does not have it.
    """
    every = {w for row in sweep.values() for w in row}
    whole = {"blend": dict.fromkeys(every, 0.0), **sweep}
    if reference not in whole:
        raise ValueError(f"--reference {reference}: the sweeps have {', '.join(whole)}")
    own = whole[reference]
    others = {name: {w: value - own[w] for w, value in row.items() if w in own} for name, row in whole.items()}
    return {name: row for name, row in others.items() if name != reference}


def pool(sweeps: Sequence[Cells], margin: float = MARGIN) -> list[dict[str, Any]]:
    """Means over trainings, for every method and preference that all sweeps have.

    Args:
        sweeps: of each training.
        margin: of the tests.

    Returns:
        Rows with method, weights, the mean with the half width of its 95 % Student interval over the trainings, and the p of
        `equivalence`: ``p equal`` and ``p not below``. A row with weights None is of the mean over the preferences, which each
        training gives once. A single sweep has means alone (nan).

    Raises:
        ValueError: there is no sweep, one of them is given twice, or there is no method and preference that all have.
    """
    if not sweeps:
        raise ValueError("no sweep is given: give a summary.json of each training")
    if any(sweep == other for place, sweep in enumerate(sweeps) for other in sweeps[:place]):
        raise ValueError("two of the sweeps are the same to the last digit: give each training once")
    rows: list[dict[str, Any]] = []
    for method in sweeps[0]:
        shared = [w for w in sweeps[0][method] if all(w in sweep.get(method, {}) for sweep in sweeps)]
        if not shared:
            continue
        rows += [_row(method, w, [sweep[method][w] for sweep in sweeps], margin) for w in shared]
        rows.append(_row(method, None, [float(np.mean([s[method][w] for w in shared])) for s in sweeps], margin))
    if not rows:
        raise ValueError("the sweeps share no method at a preference: give sweeps of the same settings")
    return rows


def _row(method: str, weights: tuple[float, ...] | None, values: Sequence[float], margin: float) -> dict[str, Any]:
    tests = equivalence(values, margin, np.arange(len(values)))
    return {
        "method": method,
        "weights": weights,
        "difference": interval(values),
        "p equal": tests.p,
        "p not below": tests.p_below,
    }


def pooled_table(rows: Sequence[Mapping[str, Any]], p: str | None = None) -> list[dict[str, str]]:
    """Rows of `pool` as a table: a line for each preference, a column for each method, the mean over the preferences last.

    Args:
        rows: of `pool`.
        p: which p to add in brackets.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    preferences = sorted({row["weights"] for row in rows if row["weights"] is not None}, reverse=True)
    cells = {(row["method"], row["weights"]): _cell(row, p) for row in rows}
    names = [(weights, write_weights(weights)) for weights in preferences]
    return [
        {"preference": name, **{label(method): cells.get((method, weights), "") for method in methods}}
        for weights, name in [*names, (None, "mean of these")]
    ]


def _cell(row: Mapping[str, Any], p: str | None) -> str:
    mean, half = row["difference"]
    text = f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} \N{PLUS-MINUS SIGN} {half:.2f}"
    return text if p is None or math.isnan(row[p]) else f"{text} ({row[p]:.2f})"
