"""Runs the method of a point: the adapters that it attaches and the steps that it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blending.plans import Blend, EarlyBlend, Soup, Stochastic
from ...rewards.protocol import Reward, score, weighted_sum
from ...training.ddim import DdimSteps
from .adapters import Adapter, Update, average_factors
from .config import SweepConfig
from .network import Network
from .points import DRAWS, Point
from .reward_guided import BlockwiseBestOfN, RewardGradientGuidance, clean_estimates
from .steps import Chunk, Cost, MsddaStep, Planned, PlannedWithResidual, Samples, Stepper, run_steps


@dataclass(frozen=True)
class MethodRunner:
    """What every point shares.

    Attributes:
        config: the settings.
        network: the base.
        steps: the sampler.
        adapters: in the order of the weights.
        mixture_adapters: adapters of morl by their file's digest.
        rewards: by the user's names.
    """

    config: SweepConfig
    network: Network
    steps: DdimSteps
    adapters: Sequence[Adapter]
    mixture_adapters: Mapping[str, Adapter]
    rewards: Mapping[str, Reward]

    def sample(self, point: Point, chunk: Chunk, cost: Cost) -> Samples:
        """Make a point's pictures of one chunk."""
        name = point.recipe["sampler"]
        if name == "code":
            with torch.inference_mode(), self.network.adapted([{}]):
                return self._code(point.recipe).run(self.network, self.steps, chunk, cost)
        updates, stepper = ([{}], self._rgg(point.recipe, chunk)) if name == "rgg" else self._method(point.recipe)
        # Reward gradients pass through tensors that inference mode would not let them.
        quiet = torch.no_grad() if name == "rgg" else torch.inference_mode()
        with quiet, self.network.adapted(updates):
            return run_steps(
                stepper,
                self.network,
                self.steps,
                chunk,
                self.config.seed,
                cost,
                adapters=len(updates),
                measure_kl=self.config.measure_kl,
            )

    def _code(self, recipe: Mapping[str, Any]) -> BlockwiseBestOfN:
        def judge(images: Tensor, prompts: Sequence[str]) -> Tensor:
            wanted = dict(zip((adapter.name for adapter in self.adapters), shares, strict=True))
            used = {name: self.rewards[name] for name, share in wanted.items() if share > 0}
            return weighted_sum(score(used, images, prompts), {name: wanted[name] for name in used})

        shares = [w / scale for w, scale in zip(recipe["weights"], recipe["scales"], strict=True)]
        estimates = clean_estimates(self.network.base, self.steps)
        return BlockwiseBestOfN(judge, estimates, recipe["block"], recipe["candidates"], self.config.seed)

    def _rgg(self, recipe: Mapping[str, Any], chunk: Chunk) -> RewardGradientGuidance:
        rewards = [self.rewards[adapter.name] for adapter in self.adapters]
        estimates = clean_estimates(self.network.base, self.steps)
        return RewardGradientGuidance(rewards, recipe["weights"], recipe["alpha"], estimates, chunk.prompts)

    def _method(self, recipe: Mapping[str, Any]) -> tuple[list[Update], Stepper]:
        """The adapters a recipe attaches, and its steps."""
        name = recipe["sampler"]
        if name == "base":
            return [{}], Planned(Blend((0.0,)))
        if name == "morl":
            return [self.mixture_adapters[recipe["file"]].update], Planned(Blend((1.0,)))
        updates, coefficients = [adapter.update for adapter in self.adapters], tuple(recipe["coefficients"])
        if name == "factor-soup":
            total = math.fsum(coefficients)
            averaged = average_factors(self.adapters, [c / total for c in coefficients])
            return [averaged], Planned(Soup((total,)))
        if name == "soup":
            return updates, Planned(Soup(coefficients))
        if name == "early":
            return updates, PlannedWithResidual(EarlyBlend(coefficients), self.steps)
        if name in DRAWS:
            return updates, Planned(Stochastic(coefficients, DRAWS[name]))
        if name == "msdda":
            steps = {eta: self.network.base.ddim_steps(self.config.steps, eta) for eta in recipe["etas"]}
            return updates, MsddaStep(coefficients, recipe["etas"], steps)
        return updates, Planned(Blend(coefficients))  # blend, adapter
