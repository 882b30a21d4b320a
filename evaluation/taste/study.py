"""The study: every way of asking on the same people, with the regret after 5, 10 and 20 duels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts.files import write_atomically
from .people import KINDS, TUNED_ON, make_person
from .strategies import STRATEGIES, Asking

AT = (5, 10, 20)
ADAPTERS = (2, 3, 4, 8)
CARELESSNESS = (0.0, 0.15)
FIRST = TUNED_ON.stop
"""The first person's number: people for whom the assumptions were chosen would flatter the search."""
_RESAMPLES = 2000


def regrets(strategy: str, kind: str, adapters: int, carelessness: float, number: int) -> list[float]:
    """One person's regret after `AT` duels."""
    person = make_person(kind, adapters, carelessness, number)
    asking = Asking(adapters, np.random.default_rng([7, number]))
    pairs, found = STRATEGIES[strategy](asking), []
    pair = next(pairs)
    for count in range(1, max(AT) + 1):
        asking.votes.append(person.vote(*pair))
        pair = next(pairs)  # takes the vote in before the next pair is chosen
        if count in AT:
            found.append(person.regret(asking.best))
    return found


def study(
    folder: Path, people: int, adapters: Sequence[int] = ADAPTERS, ways: Sequence[str] = tuple(STRATEGIES)
) -> list[dict[str, Any]]:
    """Run what is missing and return the table.

    Args:
        folder: one file a setting; a setting whose file has enough people is not run again.
        people: how many hidden utilities of each kind and number of adapters; their numbers begin with `FIRST`.
        adapters: the numbers of adapters.
        ways: of asking, keys of `STRATEGIES`.

    Returns:
        A row a setting and way of asking, with the median regret and its 95 % interval by resampling the people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for count, kind, careless, strategy in itertools.product(adapters, KINDS, CARELESSNESS, ways):
        name = f"{strategy.replace(', ', '-').replace(' ', '-')}_{kind}_{count}_{round(100 * careless)}_from_{FIRST}"
        file = folder / f"{name}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        while len(known) < people:
            numbers = range(FIRST + len(known), FIRST + min(people, len(known) + 25))
            known += [regrets(strategy, kind, count, careless, number) for number in numbers]
            write_atomically(file, json.dumps(known).encode())
        setting = {"adapters": count, "utility": kind, "random votes": careless, "asked by": strategy}
        rows.append(setting | {f"after {at}": median(np.array(known)[:people, i]) for i, at in enumerate(AT)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows for reading: ".031 (.020 to .044)"."""
    return [{key: shown(value) if isinstance(value, tuple) else value for key, value in row.items()} for row in rows]


def median(values: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """The median and its 95 % interval (percentile bootstrap, fixed seed)."""
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def shown(interval: tuple[float, float, float]) -> str:
    """A median with its interval as text."""
    middle, low, high = (f"{value:.3f}".replace("0.", ".", 1) for value in interval)
    return f"{middle} ({low} to {high})"
