"""The methods of a sweep, one table: name, label, recipe, cost, and how the pictures are made.

A new method is a line in `METHODS` with its functions. This file imports torch only where pictures are made, so that a
command can refuse a wrong name without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import runs
from .config import SweepConfig

if TYPE_CHECKING:
    from ...blending.plans import Gates
    from ...pipelines.adapter_files import AdapterFile
    from .runner import MethodRunner
    from .steps import Chunk, Cost, Samples

NEGLIGIBLE = 1e-12
"""A coefficient nearer to 0 than this needs no call."""

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A point of a sweep as it was asked for.

    Attributes:
        config: the sweep's settings.
        adapters: in the order of the weights.
        morl: preference -> the adapter trained for it.
        weights: the preference, float[m], sum 1.
        coefficients: c, float[m].
        stacked: a group that was trained to be stacked, in the order of the weights; empty where the adapters are one.
    """

    config: SweepConfig
    adapters: Sequence[AdapterFile]
    morl: Mapping[Gates, AdapterFile]
    weights: Gates
    coefficients: Gates
    stacked: Sequence[AdapterFile] = ()

    @property
    def etas(self) -> list[float]:
        """Each adapter's own noise scale."""
        return [self.config.etas.get(adapter.name, self.config.eta) for adapter in self.adapters]


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


# Recipes.


def _coefficients(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        return single_model(asked) or {"sampler": name, "coefficients": list(asked.coefficients)}

    return recipe


def single_model(asked: Asked) -> Recipe | None:
    """The recipe of the base or of one adapter alone, where the coefficients ask for nothing else."""
    used = [i for i, c in enumerate(asked.coefficients) if abs(c) > NEGLIGIBLE]
    if not used:
        return {"sampler": "base"}
    if len(used) > 1 or _base_share(asked.coefficients) != 0:
        return None
    return {"sampler": "adapter", "coefficients": [float(i == used[0]) for i in range(len(asked.coefficients))]}


def _base_share(coefficients: Sequence[float]) -> float:
    from ...blending.plans import base_coefficient

    return base_coefficient(tuple(coefficients))


def _drawn(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        from ...blending.plans import Stochastic

        single = single_model(asked)
        if single is None:
            Stochastic(asked.coefficients, runs.DRAWS[name])  # refuses what cannot be drawn
        return single or {"sampler": name, "coefficients": list(asked.coefficients)}

    return recipe


def _msdda_recipe(asked: Asked) -> Recipe | None:
    single = single_model(asked)
    own_noise = [eta for eta, c in zip(asked.etas, asked.coefficients, strict=True) if abs(c) > NEGLIGIBLE]
    if single is not None and (single["sampler"] == "base" or own_noise == [asked.config.eta]):
        return single
    return {"sampler": "msdda", "coefficients": list(asked.coefficients), "etas": asked.etas}


def _factor_soup_recipe(asked: Asked) -> Recipe | None:
    single = single_model(asked)
    if single is None and math.fsum(asked.coefficients) == 0:
        raise ValueError("factor-soup: coefficients of sum 0 give no average; leave it out")
    return single or {"sampler": "factor-soup", "coefficients": list(asked.coefficients)}


def _morl_recipe(asked: Asked) -> Recipe | None:
    if asked.weights in asked.morl:
        return {"sampler": "morl", "file": asked.morl[asked.weights].digest}
    return single_model(asked)


def _stacked_recipe(asked: Asked) -> Recipe | None:
    from ...blending.groups import stacking_refusal

    group = asked.stacked or asked.adapters
    refusal = stacking_refusal([adapter.group for adapter in group], [adapter.name for adapter in group])
    if refusal:
        raise ValueError(f"stacked: {refusal}: give the files of one group as stacked, or leave the method out")
    coefficients = list(asked.coefficients)
    if not asked.stacked:
        return single_model(asked) or {"sampler": "stacked", "coefficients": coefficients}
    return {"sampler": "stacked", "coefficients": coefficients, "files": [adapter.digest for adapter in group]}


def _composed(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        if all(abs(c) <= NEGLIGIBLE for c in asked.coefficients):
            return {"sampler": "base"}
        used = [float(abs(c) > NEGLIGIBLE) for c in asked.coefficients]
        if sum(used) == 1:
            return {"sampler": "adapter", "coefficients": used}
        own = {"block": asked.config.switch_steps} if name == "switch" else {}
        return {"sampler": name, "coefficients": used, **own}

    return recipe


def _code_recipe(asked: Asked) -> Recipe | None:
    from .points import reward_scales

    chosen = {"block": asked.config.code_block, "candidates": asked.config.code_candidates}
    scales = reward_scales(asked.config, asked.adapters)
    return {"sampler": "code", "weights": list(asked.weights), "scales": scales, **chosen}


def _rgg_recipe(asked: Asked) -> Recipe | None:
    return {"sampler": "rgg", "weights": list(asked.weights), "alpha": asked.config.rgg_alpha}


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


METHODS: dict[str, Method] = {
    "base": Method(runs.base, lambda asked: {"sampler": "base"}, _one, is_scaled=False),
    "blend": Method(runs.blend, _coefficients("blend"), _rows),
    "stochastic": Method(runs.drawn, _drawn("stochastic"), _one),
    "stochastic-independent": Method(
        runs.drawn, _drawn("stochastic-independent"), _one, "stochastic, independent draws"
    ),
    "soup": Method(runs.soup, _coefficients("soup"), _one),
    "early": Method(runs.early, _coefficients("early"), _early_rows, "early blend, then soup"),
    "factor-soup": Method(runs.factor_soup, _factor_soup_recipe, _one, "soup of factors (as in the paper's code)"),
    "msdda": Method(
        runs.msdda,
        _msdda_recipe,
        _rows,
        "MSDDA",
        needs_transition="it multiplies the Gaussian steps of the adapters",
        settings=lambda asked: "etas " + "/".join(f"{eta:g}" for eta in asked.etas),
    ),
    "morl": Method(runs.morl, _morl_recipe, _one, "MORL (trained for w)", is_scaled=False),
    "code": Method(
        runs.code,
        _code_recipe,
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
        _rgg_recipe,
        lambda recipe: 3.0,
        "RGG",
        is_scaled=False,
        follows_rewards=True,
        needs_gradient=True,
        needs_transition="its pull is proportional to the variance of the step",
        needs_noise=True,
        settings=lambda asked: f"alpha {asked.config.rgg_alpha:g}",
    ),
    "stacked": Method(runs.stacked, _stacked_recipe, _one, "stacked (trained for it)"),
    "composite": Method(runs.composite, _composed("composite"), _used, "LoRA Composite", is_scaled=False),
    "switch": Method(
        runs.switch,
        _composed("switch"),
        _one,
        "LoRA Switch",
        is_scaled=False,
        settings=lambda asked: f"every {asked.config.switch_steps} steps",
    ),
}
"""Method's name -> method, in the order of the tables."""
