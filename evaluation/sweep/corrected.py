"""The corrected blend of a sweep: several candidates for each picture, resampled by their path weights (`path_weights`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...blending.combine import combine
from ...blending.path_weights import Particles, draw_one, log_weight_change
from ...blending.plans import Blend
from ...training.policy import PolicySteps
from ...training.randomness import keyed_generator
from .network import Network
from .steps import Chunk, Cost, Samples, StepState

START = 0
"""The number of the draw that is the starting latent; step ``index`` has ``index + 1``, as in a chunk's noise."""


@dataclass(frozen=True)
class CorrectedBlend:
    """The blend with K candidates for each picture.

    Every candidate is a run of the blend with starting noise and draws of its own. After each step a picture's candidates are
    resampled where their effective share falls below ``resample_below``. One is drawn at the end in proportion to its weight.

    Args:
        planner: the blend.
        particles: K; 1 is the blend. The first candidate's noise is the sweep's.
        resample_below: see `blending.path_weights.Particles`.
        seed: of the others' noise and of the choices.
    """

    planner: Blend
    particles: int
    resample_below: float
    seed: int

    def run(self, network: Network, steps: PolicySteps, chunk: Chunk, cost: Cost) -> Samples:
        """Denoise a chunk; the KL to the base has no closed form."""
        inputs = network.inputs(chunk.conditioning)
        latents = torch.stack(
            [self._noise(chunk, number, START).to(network.device) for number in range(self.particles)]
        )
        particles = Particles(len(chunk.images), self.particles, self.resample_below, network.device)
        for index in range(len(steps)):
            states = [
                StepState(network, steps, index, self.seed, chunk.images, latents[number], inputs, cost)
                for number in range(self.particles)
            ]
            moved = [self._step(state) for state in states]
            latents = torch.stack([mean for mean, _ in moved])
            if states[0].std() > 0:
                noise = torch.stack([self._noise(chunk, number, index + 1) for number in range(self.particles)])
                latents = latents + states[0].std() * noise.to(latents)
            change = torch.stack([change for _, change in moved], dim=1)
            chosen = particles.advance(change, self._uniform(chunk, index).to(network.device))
            if chosen is not None:
                latents = _taken(latents, chosen)
        drawn = draw_one(particles.log_weights, self._uniform(chunk, len(steps)).to(network.device))
        return Samples(_taken(latents, drawn[:, None])[0], None)

    def _step(self, state: StepState) -> tuple[Tensor, Tensor]:
        """The mean of one candidate's step, and what the step adds to its log weights."""
        plan, std = self.planner(state.info), state.std()
        means = [state.mean(state.predict(row)) for row in plan.gates]
        mix = [float(c) for c in plan.mix]
        change = log_weight_change(means, mix, std)
        return combine((mean.clone() for mean in means), mix), change

    def _noise(self, chunk: Chunk, particle: int, draw: int) -> Tensor:
        if particle == 0:
            return chunk.noise[:, draw]
        shape = chunk.noise.shape[2:]
        keys = [(self.seed, "particle", *key, particle, draw) for key in _keys(chunk)]
        return torch.stack([torch.randn(shape, generator=keyed_generator(*key)) for key in keys])

    def _uniform(self, chunk: Chunk, draw: int) -> Tensor:
        keys = [(self.seed, "resampling", *key, draw) for key in _keys(chunk)]
        return torch.cat([torch.rand(1, generator=keyed_generator(*key)) for key in keys])


def _keys(chunk: Chunk) -> list[tuple[str, int]]:
    return list(zip(chunk.prompts, chunk.numbers, strict=True))


def _taken(latents: Tensor, chosen: Tensor) -> Tensor:
    """Chosen candidates of every picture, float32[k, B, C, H, W].

    Args:
        latents: float32[K, B, C, H, W].
        chosen: int64[B, k].
    """
    return latents[chosen.T, torch.arange(latents.shape[1], device=latents.device)]
