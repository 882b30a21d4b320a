"""The denoising loop with a scheduler of diffusers, for methods that are one prediction per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...training.models.schedulers import SchedulerRun
from ...training.randomness import keyed_generator
from .network import Network
from .steps import Chunk, Cost, Predictor, Samples, StepState


@dataclass(frozen=True)
class Scheduled:
    """Denoises as diffusers' pipelines do.

    A scheduler tells its next latents and not the distribution that they are drawn from, so there is no KL.

    Args:
        make: a fresh run of the scheduler.
        seed: of the scheduler's noise and of the method's draws.
    """

    make: Callable[[], SchedulerRun]
    seed: int

    def run(self, predictor: Predictor, network: Network, chunk: Chunk, cost: Cost) -> Samples:
        """Denoise a chunk; each picture's noise has a generator of its own."""
        run, inputs, generators = self.make(), network.inputs(chunk.conditioning), self.generators(chunk)
        latents = run.start(chunk.noise[:, 0].to(network.device))
        for index in range(len(run.levels)):
            noisy = run.scaled(index, latents)
            state = StepState(network, run.levels, index, self.seed, chunk.images, noisy, inputs, cost)
            latents = run.step(index, predictor.output(state), latents, generators)
        return Samples(latents, None)

    def generators(self, chunk: Chunk) -> list[torch.Generator]:
        """Each picture's generator, a function of seed, prompt and the picture's number."""
        keys = zip(chunk.prompts, chunk.numbers, strict=True)
        return [keyed_generator(self.seed, "scheduler", prompt, number) for prompt, number in keys]
