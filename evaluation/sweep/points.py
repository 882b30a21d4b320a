"""The points of a sweep: method, preference and KL scale, each with the recipe of its pictures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...blending.plans import NEGLIGIBLE, Gates, Stochastic, base_coefficient
from ...blending.preference import Preference
from ...blending.simplex import lattice
from .adapters import Adapter
from .config import METHODS, UNSCALED, SweepConfig

DRAWS = {"stochastic": "stratified", "stochastic-independent": "independent"}


@dataclass(frozen=True)
class Point:
    """One line of the result.

    Attributes:
        method: one of `METHODS`.
        weights: the preference, float[m], sum 1; empty for the base, which has none.
        kl_scale: lambda.
        recipe: everything that decides the pictures besides the sweep's common settings. Points of different methods
            that are the same computation (all weight on one adapter, KL scale 0) have the same recipe, and are
            computed once.
    """

    method: str
    weights: Gates
    kl_scale: float
    recipe: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """A file name that tells recipes apart and says a little about them."""
        digest = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()
        return f"{self.recipe['sampler']}-{digest[:12]}"


def preferences(config: SweepConfig) -> list[Gates]:
    """The sweep's preferences, normalised, each once, in order: those given, then the grid.

    Raises:
        ValueError: a vector of the wrong length, negative, all 0; or none at all for a method that needs one.
    """
    names, given = list(config.adapters), list(config.weights)
    if config.grid:
        given += [list(point) for point in reversed(lattice(len(names), config.grid))]
    for weights in given:
        if len(weights) != len(names):
            raise ValueError(
                f"weights {weights}: {len(weights)} numbers for {len(names)} adapters ({', '.join(names)})"
            )
    if not given and any(method != "base" for method in config.methods):
        raise ValueError("no preferences: give --weights '[[1, 0], [0.5, 0.5]]' or --grid 4")
    return list(dict.fromkeys(Preference(tuple(weights)).normalised(names) for weights in given))


def make_points(config: SweepConfig, adapters: Sequence[Adapter], morl: Mapping[Gates, Adapter]) -> list[Point]:
    """Every point of a sweep, in order: methods, then KL scales, then preferences.

    Args:
        config: the settings.
        adapters: in order.
        morl: preference -> the adapter trained for it.

    Raises:
        ValueError: an unknown method, or one that cannot have these weights, KL scales or files.
    """
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    chosen = preferences(config)
    strange = [weights for weights in morl if weights not in chosen]
    if strange:
        raise ValueError(f"morl has an adapter for {list(strange[0])}, which is none of the weights of this sweep")
    points: list[Point] = []
    for method in dict.fromkeys(config.methods):
        if method == "base":
            points.append(Point("base", (), 0.0, {"sampler": "base"}))
            continue
        for kl_scale in dict.fromkeys(config.kl_scales if method not in UNSCALED else [1.0]):
            for weights in chosen:
                coefficients = coefficients_of(config, adapters, weights, kl_scale)
                recipe = _recipe(method, coefficients, weights, config, adapters, morl)
                if recipe is not None:
                    points.append(Point(method, weights, kl_scale, recipe))
    return points


def coefficients_of(config: SweepConfig, adapters: Sequence[Adapter], weights: Gates, kl_scale: float) -> Gates:
    """``c_i = kl_scale w_i alpha_i / sum_j w_j alpha_j`` for rewards as given, ``kl_scale w_i`` for rewards in units of alpha."""
    known = [adapter.kl_weight for adapter in adapters] if config.reward_units == "as_given" else ()
    return Preference(weights, kl_scale).coefficients([adapter.name for adapter in adapters], known)


def reward_scales(config: SweepConfig, adapters: Sequence[Adapter]) -> list[float]:
    """What each adapter's reward is divided by before it is weighed, float[m].

    Raises:
        ValueError: units of the KL weight are asked for and a file does not say what it is.
    """
    if config.reward_units == "as_given":
        return [1.0] * len(adapters)
    scales: list[float] = []
    for adapter in adapters:
        if adapter.kl_weight is None:
            raise ValueError(
                f"reward_units is kl_weight, but the file of adapter {adapter.name!r} has no KL weight in its metadata: "
                "use reward_units as_given"
            )
        scales.append(adapter.kl_weight)
    return scales


def _recipe(
    method: str,
    coefficients: Gates,
    weights: Gates,
    config: SweepConfig,
    adapters: Sequence[Adapter],
    morl: Mapping[Gates, Adapter],
) -> dict[str, Any] | None:
    """What a point computes; None where there is no such point (no adapter was trained for these weights)."""
    if method == "code":
        chosen = {"block": config.code_block, "candidates": config.code_candidates}
        return {"sampler": method, "weights": list(weights), "scales": reward_scales(config, adapters), **chosen}
    if method == "rgg":
        return {"sampler": method, "weights": list(weights), "alpha": config.rgg_alpha}
    if method == "morl" and weights in morl:
        return {"sampler": "morl", "file": morl[weights].digest}
    single = _single_model(coefficients, config, adapters, own_noise=method == "msdda")
    if single is not None:
        return single
    if method == "morl":
        return None
    recipe: dict[str, Any] = {"sampler": method, "coefficients": list(coefficients)}
    if method in DRAWS:
        Stochastic(coefficients, DRAWS[method])  # refuses what cannot be drawn
    if method == "msdda":
        recipe["etas"] = [config.etas.get(adapter.name, config.eta) for adapter in adapters]
    if method == "factor-soup" and math.fsum(coefficients) == 0:
        raise ValueError("factor-soup: coefficients of sum 0 give no average; leave it out")
    return recipe


def _single_model(
    coefficients: Gates, config: SweepConfig, adapters: Sequence[Adapter], *, own_noise: bool
) -> dict[str, Any] | None:
    """The recipe of the base or of one adapter single, where the coefficients ask for nothing else."""
    used = [i for i, c in enumerate(coefficients) if abs(c) > NEGLIGIBLE]
    if not used:
        return {"sampler": "base"}
    if len(used) > 1 or base_coefficient(coefficients) != 0:
        return None
    if own_noise and config.etas.get(adapters[used[0]].name, config.eta) != config.eta:
        return None
    return {"sampler": "adapter", "coefficients": [float(i == used[0]) for i in range(len(coefficients))]}
