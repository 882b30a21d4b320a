"""The points of a sweep: method, preference and KL scale, each with the recipe of its pictures."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...blending.plans import Gates
from ...blending.preference import Preference
from ...blending.simplex import lattice
from ...pipelines.adapter_files import AdapterFile
from .config import SweepConfig
from .methods import METHODS
from .recipes import Asked, Files

logger = logging.getLogger("diffusion_blend")


@dataclass(frozen=True)
class Point:
    """One line of the result.

    Attributes:
        method: a name of `methods.METHODS`.
        weights: the preference, float[m], sum 1; empty for the base, which has none.
        kl_scale: lambda.
        recipe: everything that decides the pictures besides the sweep's common settings. Points of different methods
            that are the same computation (all weight on one adapter, KL scale 0) have the same recipe, and are
            computed once.
        settings: the method's own settings in words.
        images: pictures that were asked for.
    """

    method: str
    weights: Gates
    kl_scale: float
    recipe: Mapping[str, Any]
    settings: str
    images: int

    @property
    def folder(self) -> str:
        """A file name that tells recipes apart and says a little about them."""
        return f"{self.recipe['sampler']}-{_digest(self.recipe)}"

    @property
    def key(self) -> str:
        """A file name that tells points apart, however many pictures they have."""
        return f"{self.method}-{_digest([self.method, list(self.weights), self.kl_scale, self.folder, self.settings])}"

    @property
    def label(self) -> tuple[Any, ...]:
        """What tells points apart in the tables. Two points with the same label would be one mean."""
        return self.method, self.settings, self.kl_scale, self.weights

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts points for the tables: by method, settings, KL scale, then the first adapter's corner first."""
        return list(METHODS).index(self.method), self.settings, self.kl_scale, tuple(-w for w in self.weights)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def preferences(config: SweepConfig, method: str = "") -> list[Gates]:
    """The preferences of a method, normalised, each once, in order: those given, then the grid; or those of its own.

    Raises:
        ValueError: a vector of the wrong length, negative, all 0; or none at all for a method that needs one.
    """
    names, given = list(config.adapters), list(config.weights)
    if method in config.method_weights:
        given = list(config.method_weights[method])
    elif config.grid:
        given += [list(point) for point in reversed(lattice(len(names), config.grid))]
    for weights in given:
        if len(weights) != len(names):
            raise ValueError(
                f"weights {weights}: {len(weights)} numbers for {len(names)} adapters ({', '.join(names)})"
            )
    if not given and any(method != "base" for method in config.methods):
        raise ValueError("no preferences: give --weights '[[1, 0], [0.5, 0.5]]' or --grid 4")
    return list(dict.fromkeys(Preference(tuple(weights)).normalised(names) for weights in given))


def make_points(config: SweepConfig, files: Files) -> list[Point]:
    """Every point that a sweep's settings ask for, in order: methods, then KL scales, then preferences.

    Args:
        config: the settings.
        files: the adapter files.

    Raises:
        ValueError: a method that cannot have these weights, KL scales or files.
    """
    for name, own in (("morl", files.morl), ("distilled", files.distilled)):
        strange = [weights for weights in own if weights not in preferences(config, name)]
        if strange:
            raise ValueError(
                f"{name} has an adapter for {list(strange[0])}, which is none of the weights of this sweep"
            )
    points: list[Point] = []
    for method in dict.fromkeys(config.methods):
        if method == "base":
            points += points_of([("base", (), 0.0)], config, files)
            continue
        chosen, refusals = preferences(config, method), list[ValueError]()
        scales = list(dict.fromkeys(config.kl_scales if METHODS[method].is_scaled else [1.0]))
        for scale in scales:
            try:
                points += points_of([(method, weights, scale) for weights in chosen], config, files)
            except ValueError as error:
                refusals.append(error)
                logger.info("%s is left out at KL scale %g: %s", method, scale, error)
        if len(refusals) == len(scales):
            raise refusals[0]
    return points


def points_of(asked: Iterable[tuple[str, Gates, float]], config: SweepConfig, files: Files) -> list[Point]:
    """The points of methods, preferences and KL scales. Those that a method does not have are left out with a line."""
    points: list[Point] = []
    for method, weights, kl_scale in asked:
        coefficients = coefficients_of(config, files.adapters, weights, kl_scale) if weights else ()
        request = Asked(config, files, weights, coefficients)
        recipe = METHODS[method].recipe(request)
        if recipe is None:
            words = ",".join(f"{weight:g}" for weight in weights)
            logger.info("%s is left out at the weights %s: there is no file for them", method, words)
            continue
        settings = METHODS[method].settings(request)
        points.append(Point(method, weights, kl_scale, recipe, settings, config.images_per_point))
    return points


def coefficients_of(config: SweepConfig, adapters: Sequence[AdapterFile], weights: Gates, kl_scale: float) -> Gates:
    """``c_i = kl_scale w_i alpha_i / sum_j w_j alpha_j`` for rewards as given, ``kl_scale w_i`` for rewards in units of alpha."""
    known = [adapter.kl_weight for adapter in adapters] if config.reward_units == "as_given" else ()
    return Preference(weights, kl_scale).coefficients([adapter.name for adapter in adapters], known)


def reward_scales(config: SweepConfig, adapters: Sequence[AdapterFile]) -> list[float]:
    """The number by which each adapter's reward is divided before it is weighed, float[m].

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
