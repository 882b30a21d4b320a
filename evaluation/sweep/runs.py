"""How each method of a sweep makes a chunk's pictures by its recipe. torch is imported only where pictures are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runner import MethodRunner
    from .steps import Chunk, Cost, Samples

DRAWS = {"stochastic": "stratified", "stochastic-independent": "independent"}
"""The method's name -> how the adapter of a step is drawn."""


def base(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:  # noqa: ARG001
    from ...blending.plans import Blend

    return runner.planned([{}], Blend((0.0,)), chunk, cost)


def blend(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Blend
    from .path_shares import WeighedBlend

    stepper = WeighedBlend(Blend(tuple(recipe["coefficients"])))
    samples = runner.predicted(runner.updates, stepper, chunk, cost)
    return replace(samples, log_weights=stepper.log_weights)


def drawn(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Stochastic

    planner = Stochastic(tuple(recipe["coefficients"]), DRAWS[recipe["sampler"]])
    return runner.planned(runner.updates, planner, chunk, cost)


def soup(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Soup

    return runner.planned(runner.updates, Soup(tuple(recipe["coefficients"])), chunk, cost)


def early(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import EarlyBlend
    from .steps import PlannedWithResidual

    stepper = PlannedWithResidual(EarlyBlend(tuple(recipe["coefficients"])))
    return runner.predicted(runner.updates, stepper, chunk, cost)


def factor_soup(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Soup
    from .adapters import average_factors

    total = math.fsum(recipe["coefficients"])
    averaged = average_factors(runner.adapters, [c / total for c in recipe["coefficients"]])
    return runner.planned([averaged], Soup((total,)), chunk, cost)


def msdda(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from .steps import MsddaStep

    steps = {eta: runner.network.base.policy_steps(runner.config.steps, eta) for eta in recipe["etas"]}
    stepper = MsddaStep(tuple(recipe["coefficients"]), recipe["etas"], steps)
    return runner.denoise(runner.updates, stepper, chunk, cost)


def morl(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Blend

    return runner.planned([runner.mixture_adapters[recipe["file"]].update], Blend((1.0,)), chunk, cost)


def stacked(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Soup

    group = [runner.mixture_adapters[digest].update for digest in recipe.get("files", ())]
    return runner.planned(group or runner.updates, Soup(tuple(recipe["coefficients"])), chunk, cost)


def cross(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.plans import Soup
    from ...pipelines.crosses import with_crosses

    crosses = [runner.mixture_adapters[digest] for digest in recipe["files"]]
    planner = with_crosses(Soup(tuple(recipe["coefficients"])), runner.adapters, crosses)
    updates = [*runner.updates, *(adapter.update for adapter in crosses)]
    return runner.planned(updates, planner, chunk, cost)


def distilled(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    return morl(runner, recipe, chunk, cost)


def composite(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.compositions import Composite

    return runner.planned(runner.updates, Composite(tuple(recipe["coefficients"])), chunk, cost)


def switch(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...blending.compositions import Switch

    planner = Switch(tuple(recipe["coefficients"]), recipe["block"])
    return runner.planned(runner.updates, planner, chunk, cost)


def code(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    return runner.blockwise_best_of_n(recipe, chunk, cost)


def rgg(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    return runner.denoise([{}], runner.reward_gradient_guidance(recipe, chunk), chunk, cost, with_gradient=True)


def conditioned(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    from ...miniature.conditioned import with_preference

    names = [adapter.name for adapter in runner.adapters]
    weights = dict(zip(names, recipe["weights"], strict=True))
    texts = [with_preference(prompt, weights) for prompt in chunk.prompts]
    asked = replace(chunk, conditioning=runner.network.base.encode(texts))
    return morl(runner, recipe, asked, cost)


def corrected(runner: MethodRunner, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
    return runner.corrected_blend(recipe, chunk, cost)
