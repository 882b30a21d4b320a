"""Makes the pictures of a point: attaches adapters, and runs a method's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blending.plans import Blend, Planner
from ...pipelines.adapter_files import Adapter, Updates
from ...rewards.protocol import Reward, score, weighted_sum
from ...training.policy import PolicySteps
from .config import SweepConfig
from .corrected import CorrectedBlend
from .methods import sampler
from .network import Network
from .points import Point
from .reward_guided import BlockwiseBestOfN, RewardGradientGuidance, clean_estimates
from .scheduled import Scheduled
from .steps import Chunk, Cost, Planned, Predictor, Samples, Stepper, run_steps


@dataclass(frozen=True)
class MethodRunner:
    """The objects that every point shares.

    Attributes:
        config: the settings.
        network: the base.
        steps: the sampler.
        adapters: in the order of the weights.
        mixture_adapters: adapters beside them (`recipes.Files.beside`), by their file's digest.
        rewards: by the user's names.
        scheduled: the loop of a scheduler of diffusers; None takes ``steps``.
    """

    config: SweepConfig
    network: Network
    steps: PolicySteps
    adapters: Sequence[Adapter]
    mixture_adapters: Mapping[str, Adapter]
    rewards: Mapping[str, Reward]
    scheduled: Scheduled | None = None

    @property
    def updates(self) -> list[Updates]:
        """Every adapter's update, in order."""
        return [adapter.update for adapter in self.adapters]

    def sample(self, point: Point, chunk: Chunk, cost: Cost) -> Samples:
        """Make a point's pictures of one chunk."""
        return sampler(point.recipe).run(self, point.recipe, chunk, cost)

    def planned(self, updates: Sequence[Updates], planner: Planner, chunk: Chunk, cost: Cost) -> Samples:
        """Pictures of a method that is a plan of gates and mix."""
        return self.predicted(updates, Planned(planner), chunk, cost)

    def predicted(self, updates: Sequence[Updates], predictor: Predictor, chunk: Chunk, cost: Cost) -> Samples:
        """Pictures of a method that is one prediction per step, by any sampler."""
        if self.scheduled is None:
            return self.denoise(updates, predictor, chunk, cost)
        with torch.inference_mode(), self.network.adapted(updates):
            return self.scheduled.run(predictor, self.network, chunk, cost)

    def denoise(
        self, updates: Sequence[Updates], stepper: Stepper, chunk: Chunk, cost: Cost, *, with_gradient: bool = False
    ) -> Samples:
        """Pictures of a method that is one Gaussian per step.

        Args:
            updates: the adapters to attach.
            stepper: the method's step.
            chunk: prompts and noise.
            cost: gets the costs.
            with_gradient: the step takes gradients, which cannot pass through tensors of inference mode.
        """
        mode = torch.no_grad() if with_gradient else torch.inference_mode()
        with mode, self.network.adapted(updates):
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

    def blockwise_best_of_n(self, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
        """Pictures of CoDe."""
        with torch.inference_mode(), self.network.adapted([{}]):
            return self.code(recipe).run(self.network, self.steps, chunk, cost)

    def corrected_blend(self, recipe: Mapping[str, Any], chunk: Chunk, cost: Cost) -> Samples:
        """Pictures of the corrected blend."""
        planner = Blend(tuple(recipe["coefficients"]))
        sampler = CorrectedBlend(planner, recipe["particles"], recipe["resample_below"], self.config.seed)
        with torch.inference_mode(), self.network.adapted(self.updates):
            return sampler.run(self.network, self.steps, chunk, cost)

    def code(self, recipe: Mapping[str, Any]) -> BlockwiseBestOfN:
        """CoDe with the weighted reward as its judge."""

        def judge(images: Tensor, prompts: Sequence[str]) -> Tensor:
            wanted = dict(zip((adapter.name for adapter in self.adapters), shares, strict=True))
            used = {name: self.rewards[name] for name, share in wanted.items() if share > 0}
            return weighted_sum(score(used, images, prompts), {name: wanted[name] for name in used})

        shares = [w / scale for w, scale in zip(recipe["weights"], recipe["scales"], strict=True)]
        estimates = clean_estimates(self.network.base, self.steps)
        return BlockwiseBestOfN(judge, estimates, recipe["block"], recipe["candidates"], self.config.seed)

    def reward_gradient_guidance(self, recipe: Mapping[str, Any], chunk: Chunk) -> RewardGradientGuidance:
        """The step of reward-gradient guidance."""
        rewards = [self.rewards[adapter.name] for adapter in self.adapters]
        estimates = clean_estimates(self.network.base, self.steps)
        return RewardGradientGuidance(rewards, recipe["weights"], recipe["alpha"], estimates, chunk.prompts)
