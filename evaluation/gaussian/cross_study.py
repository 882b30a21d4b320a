"""The cross study: how much of the soup's error to the blend a cross adapter and a distilled adapter leave, at one call.

Each unit is one seed of one pair of rewards and one KL weight, on learned networks.
"""

from __future__ import annotations

import statistics
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..intervals import interval
from .ancestral import Denoise, sample
from .cross import cross_gate, train_cross, train_distilled
from .distance import sliced_wasserstein
from .exact_study import pick
from .exact_world import World
from .learned_study import PAIRS, STEPS, Adapted, Effort
from .mixture import ring
from .networks import train_adapters, train_base
from .units import Units

Row = dict[str, Any]

ALPHAS = (0.5, 0.25)
WEIGHTS = (0.25, 0.5, 0.75)
DISTILLED_RANK = 16
FIT_STEPS = 1500
POOL = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Preferences whose blends give the points that the new adapters are fitted on."""


def study(
    output: Path, seeds: int, points: int, effort: Effort | None = None, fit_steps: int = FIT_STEPS
) -> dict[str, list[Row]]:
    """Run the units that are not yet in the folder, and return the tables.

    Args:
        output: the folder.
        seeds: seeds 0 .. seeds - 1.
        points: samples of each method.
        effort: training steps of base and adapters.
        fit_steps: optimizer steps of the cross and of each distilled adapter.
    """
    effort = effort or Effort()
    work = partial(_unit, points=points, effort=effort, fit_steps=fit_steps)
    units = [
        (f"cross-{'-'.join(pair)}-{alpha:g}-{seed}", partial(work, pair, alpha, seed))
        for seed in range(seeds)
        for pair in PAIRS
        for alpha in ALPHAS
    ]
    setting = {"points": points, "steps": [effort.base_steps, effort.adapter_steps, fit_steps]}
    kept = Units(output, setting)
    rows = [row for name, run in tqdm(units, desc="cross", mininterval=5) for row in kept.result(name, run)["rows"]]
    return {
        "Distance to the blend's samples (rms) and to the truth (sliced Wasserstein)": _summary(rows),
        "In all": _overall(rows),
    }


@cache
def _base(seed: int, steps: int) -> Any:
    return train_base(ring(), 10 * seed, steps)


def _unit(pair: tuple[str, ...], alpha: float, seed: int, *, points: int, effort: Effort, fit_steps: int) -> Row:
    world = World(ring(), pick(pair), alpha)
    base = _base(seed, effort.base_steps)
    adapters = train_adapters(base, world.adapters(), 10 * seed + 1, effort.adapter_steps)
    pool = torch.cat([_blend_run(Adapted(base, adapters), w, max(points // 4, 50), 10 * seed + 3) for w in POOL])
    cross = train_cross(base, adapters, pool, 10 * seed + 5, fit_steps)
    distilled = {
        w: train_distilled(base, adapters, [w, 1 - w], DISTILLED_RANK, pool, 10 * seed + 6, fit_steps) for w in WEIGHTS
    }
    model = Adapted(base, [*adapters, cross, *distilled.values()])
    return {
        "rows": [
            {"rewards": "/".join(pair), "alpha": alpha, **_measure(model, world, w, seed, points)} for w in WEIGHTS
        ]
    }


def _blend_run(model: Adapted, w: float, points: int, seed: int) -> Tensor:
    with model.installed():
        return _sampled(_blend(model, w), points, seed)


def _blend(model: Adapted, w: float) -> Denoise:
    return lambda x, sigma, _: (
        w * model.predict(model.unit(0), x, sigma) + (1 - w) * model.predict(model.unit(1), x, sigma)
    )


def _sampled(denoise: Denoise, points: int, seed: int) -> Tensor:
    start = torch.randn((points, 2), generator=torch.Generator().manual_seed(seed))
    return sample(denoise, start, STEPS, torch.Generator().manual_seed(seed + 100_000))


def _measure(model: Adapted, world: World, w: float, seed: int, points: int) -> Row:
    """One preference: every method from the same start and noise. Soup, cross and distilled take one call a step."""
    rest = [0.0] * (model.count - 3)
    distilled = [float(w == other) for other in WEIGHTS]
    rows = {
        "soup": (w, 1 - w, 0.0, *rest),
        "cross": (w, 1 - w, cross_gate(w, 1 - w), *rest),
        "distilled": (0.0, 0.0, 0.0, *distilled),
    }
    with model.installed():
        samples = {"blend": _sampled(_blend(model, w), points, 10 * seed + 2)}
        for name, gates in rows.items():
            samples[name] = _sampled(
                lambda x, sigma, _, gates=gates: model.predict(gates, x, sigma), points, 10 * seed + 2
            )
    target = world.exact([w, 1 - w]).sample(points, torch.Generator().manual_seed(10 * seed + 7)).float()
    found: Row = {"w": w}
    for name in rows:
        found[f"{name} - blend"] = float((samples[name] - samples["blend"]).square().sum(1).mean().sqrt())
    return found | {f"SW {name}": sliced_wasserstein(points_, target) for name, points_ in samples.items()}


def _summary(rows: list[Row]) -> list[Row]:
    """A row for each setting, with means over the seeds and 95 % intervals."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["rewards"], row["alpha"], row["w"]), []).append(row)
    return [
        {
            **dict(zip(("rewards", "alpha", "w"), key, strict=True)),
            "seeds": len(members),
            **{
                name: interval([row[name] for row in members])
                for name in members[0]
                if name not in ("rewards", "alpha", "w")
            },
        }
        for key, members in groups.items()
    ]


def _overall(rows: list[Row]) -> list[Row]:
    """The share of the soup's error that is left, over all settings and seeds."""
    table: list[Row] = []
    for name in ("cross", "distilled"):
        shares = [row[f"{name} - blend"] / row["soup - blend"] for row in rows]
        table.append(
            {
                "method": name,
                "runs": len(shares),
                "median share left": statistics.median(shares),
                "largest": max(shares),
            }
        )
    return table
