"""The methods of a sweep, one table: name, label, recipe, cost, and how the pictures are made.

A new method is a line in `METHODS` with its functions. This file imports torch only where pictures are made, so that a
command can refuse a wrong name without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import recipes, runs
from .recipes import NEGLIGIBLE, Asked, Recipe

if TYPE_CHECKING:
    from .runner import MethodRunner
    from .steps import Chunk, Cost, Samples

Run = Callable[["MethodRunner", Mapping[str, Any], "Chunk", "Cost"], "Samples"]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        run: makes a chunk's pictures by a recipe.
        recipe: everything that decides the pictures besides the sweep's common settings; None where the method has no
            such point.
        calls: network evaluations per step by a recipe, without the measurement of the KL; for the order of the work.
        label: in tables and figures; empty is the method's name.
        is_scaled: whether it has coefficients, so that the KL scale means something.
        follows_rewards: whether it needs a reward with the name of each adapter.
        needs_gradient: whether it needs rewards with a gradient.
        needs_transition: why it needs the distribution of a step, which schedulers of diffusers do not tell; empty if not.
        needs_noise: whether it does nothing, or nothing of its own, where no step has noise.
        settings: the method's own settings in words, to tell points of one folder apart.
    """

    run: Run
    recipe: Callable[[Asked], Recipe | None]
    calls: Callable[[Mapping[str, Any]], float]
    label: str = ""
    is_scaled: bool = True
    follows_rewards: bool = False
    needs_gradient: bool = False
    needs_transition: str = ""
    needs_noise: bool = False
    settings: Callable[[Asked], str] = lambda asked: ""


def sampler(recipe: Mapping[str, Any]) -> Method:
    """The method that makes a recipe's pictures; a single adapter is a blend of one."""
    return METHODS["blend" if recipe["sampler"] == "adapter" else recipe["sampler"]]


def label(method: str) -> str:
    """The name of a method in tables and figures."""
    return METHODS[method].label or method


def is_scaled(method: str) -> bool:
    """Whether the KL scale means something for a method."""
    return METHODS[method].is_scaled


def _particles(asked: Asked) -> str:
    """The settings of a corrected blend in words; the default of the second one goes without saying."""
    below = asked.config.resample_below
    return f"{asked.config.particles} particles" + ("" if below == 0.5 else f", resampled below {below:g}")


# Costs.


def _rows(recipe: Mapping[str, Any]) -> float:
    coefficients = recipe["coefficients"]
    used = sum(abs(c) > NEGLIGIBLE for c in coefficients)
    return used + (abs(1 - math.fsum(coefficients)) > NEGLIGIBLE)


def _one(recipe: Mapping[str, Any]) -> float:
    return 1.0


def _used(recipe: Mapping[str, Any]) -> float:
    return sum(recipe["coefficients"])


def _early_rows(recipe: Mapping[str, Any]) -> float:
    return 1 + 0.2 * _rows(recipe)


def _candidates(recipe: Mapping[str, Any]) -> float:
    return recipe["particles"] * _rows(recipe)


METHODS: dict[str, Method] = {
    "base": Method(runs.base, lambda asked: {"sampler": "base"}, _one, is_scaled=False),
    "blend": Method(runs.blend, recipes.blended("blend"), _rows),
    "stochastic": Method(runs.drawn, recipes.drawn("stochastic"), _one),
    "stochastic-independent": Method(
        runs.drawn, recipes.drawn("stochastic-independent"), _one, "stochastic, independent draws"
    ),
    "soup": Method(runs.soup, recipes.blended("soup"), _one),
    "early": Method(runs.early, recipes.blended("early"), _early_rows, "early blend, then soup"),
    "factor-soup": Method(runs.factor_soup, recipes.factor_soup, _one, "soup of factors (as in the paper's code)"),
    "msdda": Method(
        runs.msdda,
        recipes.msdda,
        _rows,
        "MSDDA",
        needs_transition="it multiplies the Gaussian steps of the adapters",
        settings=lambda asked: "etas " + "/".join(f"{eta:g}" for eta in asked.etas),
    ),
    "morl": Method(runs.morl, recipes.trained_for("morl"), _one, "MORL (trained for w)", is_scaled=False),
    "code": Method(
        runs.code,
        recipes.code,
        lambda recipe: recipe["candidates"],
        "CoDe",
        is_scaled=False,
        follows_rewards=True,
        needs_transition="its candidates continue one latent with noise of their own",
        needs_noise=True,
        settings=lambda asked: f"{asked.config.code_candidates} candidates, block {asked.config.code_block}",
    ),
    "rgg": Method(
        runs.rgg,
        recipes.rgg,
        lambda recipe: 3.0,
        "RGG",
        is_scaled=False,
        follows_rewards=True,
        needs_gradient=True,
        needs_transition="its pull is proportional to the variance of the step",
        needs_noise=True,
        settings=lambda asked: f"alpha {asked.config.rgg_alpha:g}",
    ),
    "stacked": Method(runs.stacked, recipes.stacked, _one, "stacked (trained for it)"),
    "composite": Method(runs.composite, recipes.composed("composite"), _used, "LoRA Composite", is_scaled=False),
    "switch": Method(
        runs.switch,
        recipes.composed("switch"),
        _one,
        "LoRA Switch",
        is_scaled=False,
        settings=lambda asked: f"every {asked.config.switch_steps} steps",
    ),
    "cross": Method(runs.cross, recipes.crossed, _one, "soup with cross adapters"),
    "distilled": Method(
        runs.distilled, recipes.trained_for("distilled"), _one, "distilled (from the blend at w)", is_scaled=False
    ),
    "conditioned": Method(runs.conditioned, recipes.conditioned, _one, "one adapter conditioned on w", is_scaled=False),
    "corrected": Method(
        runs.corrected,
        recipes.corrected,
        _candidates,
        "corrected blend",
        needs_transition="it weighs its candidates by the distributions of the adapters' steps",
        needs_noise=True,
        settings=_particles,
    ),
}
"""Method's name -> method, in the order of the tables."""
