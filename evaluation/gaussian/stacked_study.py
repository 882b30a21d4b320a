"""The stacked study: adapters trained to be stacked against the adapter trained for each mixture, on learned networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...blending.combine import evaluate
from ...blending.plans import Blend, Planner, Soup
from ...blending.step_info import StepInfo
from ..intervals import interval, ratio_interval
from .ancestral import sample
from .distance import sliced_wasserstein
from .exact_study import pick
from .learned_study import STEPS, Adapted
from .mixture import ring, weighted_reward
from .networks import Denoiser, train_adapters, train_base
from .stacked_networks import Tilts, drawn_preferences, gradient_noise, train_stacked
from .units import Units

PAIRS = (("right", "up"), ("right", "centre"))
WEIGHTS = tuple(eighth / 8 for eighth in range(9))
HELD_OUT = (0.125, 0.375, 0.625, 0.875)
"""Weights of the first reward near which the stacked adapters were never trained."""
METHODS = ("blend", "soup", "stacked", "trained for w")
SCALES = ((1.0, 1.0), (1.0, 10.0))

Distances = dict[str, dict[str, float]]
"""Weight of the first reward -> method -> sliced Wasserstein distance."""


@dataclass(frozen=True)
class Effort:
    """How much is computed: training steps, sampled points, seeds, and the KL weight."""

    base_steps: int = 4000
    adapter_steps: int = 1000
    stacked_steps: int = 1500
    points: int = 4000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    alpha: float = 0.25


def study(
    effort: Effort, folder: Path | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run every pair of every seed; those that a stopped run has finished are read from the folder.

    Returns:
        Rows for each pair and weight: distances with 95 % intervals over seeds; ratios to the adapter trained for w; and rows of
        the gradients' noise.
    """
    decisive = {key: value for key, value in asdict(effort).items() if key != "seeds"}
    units = Units(folder, decisive | {"steps": STEPS, "weights": WEIGHTS, "held_out": HELD_OUT})
    work = [(seed, pair) for seed in effort.seeds for pair in PAIRS]
    found: dict[str, list[Any]] = {"/".join(pair): [] for pair in PAIRS}
    for seed, pair in tqdm(work, desc="stacked", mininterval=5):
        made = units.result(f"stacked-{seed}-{'-'.join(pair)}", partial(_of_pair, pair, seed, effort))
        found["/".join(pair)].append(made)
    settings = [(pair, f"{w:g}") for pair in found for w in WEIGHTS]
    columns = {(pair, w): {m: [of["distances"][w][m] for of in found[pair]] for m in METHODS} for pair, w in settings}
    distances = [
        {"rewards": pair, "w": w} | {m: interval(values) for m, values in columns[pair, w].items()}
        for pair, w in settings
    ]
    return distances, _ratios(columns), _noise(found)


def _ratios(columns: dict[tuple[str, str], dict[str, list[float]]]) -> list[dict[str, Any]]:
    """The ratio of each method's distance to that of the adapter trained for w, with its 95 % interval."""

    def cells(of: Sequence[dict[str, list[float]]]) -> dict[str, str]:
        seeds = np.concatenate([np.arange(len(values["blend"])) for values in of])
        trained = [x for values in of for x in values["trained for w"]]
        return {
            method: str(ratio_interval([x for values in of for x in values[method]], trained, seeds))
            for method in METHODS[:-1]
        }

    rows: list[dict[str, Any]] = [{"rewards": pair, "w": w} | cells([of]) for (pair, w), of in columns.items()]
    inside = [of for (_, w), of in columns.items() if w not in ("0", "1")]
    held_out = [of for (_, w), of in columns.items() if float(w) in HELD_OUT]
    rows.append({"rewards": "both", "w": "all mixtures", **cells(inside)})
    rows.append({"rewards": "both", "w": "held out", **cells(held_out)})
    return rows


def _noise(found: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        {"rewards": pair, "scales": scales} | {way: interval([of["noise"][scales][way] for of in made]) for way in ways}
        for pair, made in found.items()
        for scales, ways in made[0]["noise"].items()
    ]


def _of_pair(pair: tuple[str, str], seed: int, effort: Effort) -> dict[str, Any]:
    base = train_base(ring(), 10 * seed, effort.base_steps)
    noise = {
        f"{one:g} : {other:g}": gradient_noise(base, ring(), pick(pair), (one, other), seed) for one, other in SCALES
    }
    return {"distances": _distances(base, pair, seed, effort), "noise": noise}


def _distances(base: Denoiser, pair: tuple[str, str], seed: int, effort: Effort) -> Distances:
    rewards = pick(pair)
    truths = [ring().tilted(weighted_reward(rewards, [w, 1 - w]), effort.alpha) for w in WEIGHTS]
    trained = train_adapters(base, truths, 10 * seed + 1, effort.adapter_steps)
    preferences = drawn_preferences(2, 10 * seed + 5, HELD_OUT)
    tilts = Tilts.of(ring(), rewards, effort.alpha, preferences)
    group = train_stacked(base, tilts, preferences, 10 * seed + 5, effort.stacked_steps)
    ordinary = [trained[-1], trained[0]]  # w is the weight of the first reward
    start = torch.randn((effort.points, 2), generator=torch.Generator().manual_seed(10 * seed + 2))
    distances: Distances = {}
    for w, truth, own in zip(WEIGHTS, truths, trained, strict=True):
        target = truth.sample(effort.points, torch.Generator().manual_seed(10 * seed + 7)).float()
        runs = {
            "blend": (ordinary, Blend((w, 1 - w))),
            "soup": (ordinary, Soup((w, 1 - w))),
            "stacked": (group, Soup((w, 1 - w))),
            "trained for w": ([own], Soup((1.0,))),
        }
        distances[f"{w:g}"] = {
            name: sliced_wasserstein(_sample(base, adapters, planner, start, seed), target)
            for name, (adapters, planner) in runs.items()
        }
    return distances


def _sample(base: Denoiser, adapters: Any, planner: Planner, start: Tensor, seed: int) -> Tensor:
    """Sample through the shipped side path; every method of a seed has the same start and noise."""
    model = Adapted(base, adapters)

    def denoise(x: Tensor, sigma: float, index: int) -> Tensor:
        return evaluate(planner(StepInfo(index, STEPS)), lambda row: model.predict(row[0], x, sigma))

    with model.installed():
        return sample(denoise, start, STEPS, torch.Generator().manual_seed(10 * seed + 3))
