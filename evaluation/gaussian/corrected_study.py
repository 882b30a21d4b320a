"""The corrected study: path weights against the known truth, over particles, dimension, learned networks and the sampler's noise.

Each unit is one seed of one setting. Distances are sliced 2-Wasserstein to fresh samples of the true tilted distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..intervals import interval
from .corrected import Models, corrected_blend, denoiser
from .distance import sliced_wasserstein
from .exact_study import pick
from .exact_world import World
from .learned_study import Adapted, Effort
from .mixture import GaussianMixture, QuadraticReward, ring
from .networks import train_adapters, train_base
from .units import Units

Row = dict[str, Any]

STEPS = 100
PARTICLES = (1, 4, 16, 64)
DIMENSION_PARTICLES = (1, 8, 32)
COPIES = (1, 4, 16)
ETAS = (1.0, 0.5, 0.0)
LEARNED_SEEDS = 5


def worlds(alpha: float) -> dict[str, World]:
    """Rewards right/centre on the ring of the other studies, and on a wide ring with the centre's maximum at (-1, 0)."""
    double = torch.float64
    near = QuadraticReward("centre", torch.tensor([-0.5, 0.0], dtype=double), 0.5 * torch.eye(2, dtype=double))
    return {
        "ring": World(ring(), pick(("right", "centre")), alpha),
        "wide ring": World(ring(8, 3.0, 0.3), [*pick(("right",)), near], alpha),
    }


def study(output: Path, seeds: int, points: int, parts: tuple[str, ...]) -> dict[str, list[Row]]:
    """Run the units that are not yet in the folder, and return a table for each part.

    Args:
        output: the folder.
        seeds: seeds 0 .. seeds - 1; the learned networks use the first `LEARNED_SEEDS`.
        points: samples of each setting and seed.
        parts: of `PARTS`.
    """
    setting = {"seeds": seeds, "points": points, "steps": STEPS}
    kept = Units(output, setting)
    tables: dict[str, list[Row]] = {}
    for part in parts:
        units = tqdm(list(PARTS[part](seeds, points)), desc=part, mininterval=5)
        tables[TITLES[part]] = _summary([kept.result(name, run) for name, run in units])
    return tables


NamedRuns = Iterator[tuple[str, Callable[[], Row]]]


def _particles(seeds: int, points: int) -> NamedRuns:
    for count in PARTICLES:
        for name in ("wide ring", "ring"):
            for seed in range(seeds):
                yield f"particles-{name}-{count}-{seed}", partial(_exact_row, name, 0.25, count, points, seed)


def _dimension(seeds: int, points: int) -> NamedRuns:
    for copies in COPIES:
        for count in DIMENSION_PARTICLES:
            groups = max(8, points // copies)
            for seed in range(seeds):
                run = partial(_exact_row, "wide ring", 0.5, count, groups, seed, copies=copies)
                yield f"dimension-{copies}-{count}-{seed}", run


def _noise(seeds: int, points: int) -> NamedRuns:
    for name in ("ring", "wide ring"):
        for eta in ETAS:
            for seed in range(seeds):
                yield f"noise-{name}-{eta:g}-{seed}", partial(_exact_row, name, 0.5, 1, points, seed, eta=eta)


def _learned(seeds: int, points: int) -> NamedRuns:
    for seed in range(min(seeds, LEARNED_SEEDS)):
        for alpha in (0.5, 0.25):
            for count in PARTICLES:
                yield f"learned-{alpha:g}-{count}-{seed}", partial(_learned_row, alpha, count, points, seed)


def _exact_row(
    name: str, alpha: float, count: int, points: int, seed: int, *, copies: int = 1, eta: float = 1.0
) -> Row:
    world = worlds(alpha)[name]
    truth = world.exact([0.5, 0.5])
    shown: Row = {"world": name, "alpha": alpha}
    models, oracle = [denoiser(adapter) for adapter in world.adapters()], denoiser(truth)
    return _row(shown, models, oracle, truth, count, points, seed, copies=copies, eta=eta)


def _row(
    shown: Row,
    models: Models,
    oracle: Callable[[Tensor, float], Tensor],
    truth: GaussianMixture,
    count: int,
    points: int,
    seed: int,
    *,
    copies: int = 1,
    eta: float = 1.0,
) -> Row:
    """One seed: the distances of the corrected blend and of the oracle, the exact or trained model of the mixture."""

    def distance(used: Models, coefficients: list[float], particles: int) -> tuple[float, Any]:
        generator = torch.Generator().manual_seed(1000 * seed + 1)
        run = corrected_blend(used, coefficients, points, particles, STEPS, generator, copies, eta=eta)
        target = truth.sample(points * copies, torch.Generator().manual_seed(1000 * seed + 4)).float()
        return sliced_wasserstein(run.samples.flatten(0, 1), target), run

    with torch.no_grad():
        found, run = distance(models, [0.5, 0.5], count)
        best = distance([oracle], [1.0], 1)[0]
    settings = {"dimensions": 2 * copies, "eta": eta, "particles": count}
    return {**shown, **settings, "blend": found, "oracle": best, "share": run.share, "resamplings": run.resamplings}


def _learned_row(alpha: float, count: int, points: int, seed: int) -> Row:
    world = worlds(alpha)["ring"]
    model = _networks(alpha, seed)
    with model.installed():
        models = [partial(model.predict, model.unit(index)) for index in range(3)]
        truth = world.exact([0.5, 0.5])
        shown = {"world": "ring, learned", "alpha": alpha}
        return _row(shown, models[:2], models[2], truth, count, points, seed)


@cache
def _networks(alpha: float, seed: int) -> Adapted:
    """A base with the adapters of both rewards and, last, of their mixture."""
    effort, world = Effort(), worlds(alpha)["ring"]
    base = _base(seed)
    tilts = [*world.adapters(), world.exact([0.5, 0.5])]
    return Adapted(base, train_adapters(base, tilts, 10 * seed + 1, effort.adapter_steps))


@cache
def _base(seed: int) -> Any:
    return train_base(ring(), 10 * seed, Effort().base_steps)


def _summary(rows: list[Row]) -> list[Row]:
    """A row for each setting: means over the seeds with 95 % intervals, and the ratio of the two distances."""
    names = ("world", "alpha", "dimensions", "eta", "particles")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    table: list[Row] = []
    for key, members in groups.items():
        blend, oracle = ([row[name] for row in members] for name in ("blend", "oracle"))
        table.append(
            {
                **dict(zip(names, key, strict=True)),
                "seeds": len(members),
                "distance": interval(blend),
                "oracle": interval(oracle),
                "distance / oracle": ratio(blend, oracle),
                # Steps without noise carry no weight, so there is no share.
                "effective share": interval([row["share"] for row in members]) if members[0]["eta"] else "-",
                "resamplings": interval([row["resamplings"] for row in members]),
            }
        )
    return table


def ratio(numerators: list[float], denominators: list[float]) -> tuple[float, float]:
    """The ratio R of two means, and the half width of its 95 % interval by the pairs' residuals ``(a - R b) / mean b``."""
    value = float(np.mean(numerators) / np.mean(denominators))
    residuals = (np.asarray(numerators) - value * np.asarray(denominators)) / np.mean(denominators)
    return value, interval(residuals)[1]


PARTS: dict[str, Callable[[int, int], NamedRuns]] = {
    "particles": _particles,
    "noise": _noise,
    "dimension": _dimension,
    "learned": _learned,
}
TITLES = {
    "particles": "Over particles, exact scores (right/centre, w .5; 1 particle is the blend)",
    "noise": "Over the sampler's noise, exact scores (eta 1 is ancestral, eta 0 the ODE)",
    "dimension": "Over dimension: independent copies of the plane, exact scores",
    "learned": "Over particles, learned networks (the oracle is the adapter trained for the mixture)",
}
