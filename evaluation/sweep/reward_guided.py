"""The paper's baselines that use the rewards while they sample from the base: CoDe and RGG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ...rewards.protocol import Reward
from ...training.ddim import DdimSteps, ddim_steps
from ...training.models.diffusers_model import Base
from ...training.policy import PolicySteps
from ...training.randomness import keyed_generator
from .network import Network
from .steps import Chunk, Cost, Gaussian, Row, Samples, StepState

BASE: Row = ((0.0,),)
"""The row of gates of a network without adapters."""
_GROWTH = 1.024


@dataclass(frozen=True)
class Estimates:
    """Tweedie's estimate at every step, ``x0 = state * x + output * network``; factors float64[T]."""

    state: Tensor
    output: Tensor

    def at(self, index: int, latents: Tensor, output: Tensor) -> Tensor:
        """Clean latents float32[B, C, H, W] of noisy ones and the network's output there."""
        return float(self.state[index]) * latents + float(self.output[index]) * output


def clean_estimates(base: Base, steps: PolicySteps) -> Estimates:
    """Estimates for a base's schedule: each is the mean of a DDIM step straight to abar = 1, or ``x - t v`` of a flow."""
    if not isinstance(steps, DdimSteps):
        return Estimates(torch.ones_like(steps.x0_output), steps.x0_output)
    scheduler = DDIMScheduler.from_config(dict(base.scheduler))
    assert isinstance(scheduler, DDIMScheduler)
    kind = scheduler.config["prediction_type"]
    each = [ddim_steps(scheduler.alphas_cumprod, steps.timesteps[k : k + 1], 1.0, 1.0, kind) for k in range(len(steps))]
    return Estimates(torch.cat([one.state for one in each]), torch.cat([one.output for one in each]))


@dataclass(frozen=True)
class BlockwiseBestOfN:
    """CoDe (Singh et al. 2025, arXiv 2502.00968): blockwise best-of-N.

    From each picture's latent N candidates take ``block`` steps of the base with noise of their own; the one whose
    Tweedie estimate scores best goes on.

    Args:
        judge: clean images float32[B, 3, H, W] on the CPU and their prompts -> r(w), float64[B].
        estimates: see `clean_estimates`.
        block: steps between choices, B.
        candidates: N; 1 is the base. The first candidate's noise is the sweep's.
        seed: of the others' noise.
    """

    judge: Callable[[Tensor, Sequence[str]], Tensor]
    estimates: Estimates
    block: int
    candidates: int
    seed: int

    def run(self, network: Network, steps: PolicySteps, chunk: Chunk, cost: Cost) -> Samples:
        """Denoise a chunk; the KL to the base has no closed form.

        A choice's network output at the chosen latent is also the next block's first output: it is not computed again.
        """
        inputs = network.inputs(chunk.conditioning)
        latents, output = chunk.noise[:, 0].to(network.device), None
        for start in range(0, len(steps), self.block):
            stop = min(start + self.block, len(steps))
            if output is None:
                output = self._ask(network, steps, start, latents, inputs, cost)
            states = [
                self._block(network, steps, range(start, stop), latents, output, inputs, chunk, candidate, cost)
                for candidate in range(self.candidates)
            ]
            outputs = []
            if stop < len(steps):
                outputs = [self._ask(network, steps, stop, state, inputs, cost) for state in states]
            best = self._choose(network, states, outputs, stop, chunk.prompts)
            latents = _pick(states, best)
            output = _pick(outputs, best) if outputs else None
        return Samples(latents, None)

    def _block(
        self,
        network: Network,
        steps: PolicySteps,
        block: range,
        latents: Tensor,
        output: Tensor,
        inputs: dict[str, Tensor],
        chunk: Chunk,
        candidate: int,
        cost: Cost,
    ) -> Tensor:
        for index in block:
            if index > block[0]:
                output = self._ask(network, steps, index, latents, inputs, cost)
            mean = float(steps.state[index]) * latents + float(steps.output[index]) * output
            latents = mean + float(steps.std[index]) * self._noise(chunk, candidate, index).to(mean)
        return latents

    def _ask(
        self, network: Network, steps: PolicySteps, index: int, latents: Tensor, inputs: dict[str, Tensor], cost: Cost
    ) -> Tensor:
        cost.calls += 1
        return network.output(BASE, latents, steps.timesteps[index].item(), inputs)

    def _noise(self, chunk: Chunk, candidate: int, index: int) -> Tensor:
        if candidate == 0:
            return chunk.noise[:, index + 1]
        shape = chunk.noise.shape[2:]
        keys = zip(chunk.prompts, chunk.numbers, strict=True)
        return torch.stack(
            [torch.randn(shape, generator=keyed_generator(self.seed, "code", *key, candidate, index)) for key in keys]
        )

    def _choose(
        self, network: Network, states: list[Tensor], outputs: list[Tensor], index: int, prompts: Sequence[str]
    ) -> Tensor:
        clean = states
        if outputs:
            pairs = zip(states, outputs, strict=True)
            clean = [self.estimates.at(index, state, output) for state, output in pairs]
        scores = [self.judge(network.decode(one).cpu().clone(), prompts) for one in clean]
        return torch.stack(scores).argmax(0)


def _pick(candidates: list[Tensor], best: Tensor) -> Tensor:
    return torch.stack([candidates[int(which)][i] for i, which in enumerate(best)])


@dataclass(frozen=True)
class RewardGradientGuidance:
    """Reward-gradient guidance as the paper compares with (arXiv 2505.18547, eq. 12 to 14; Chung et al. 2023).

    ``mean + lambda_{t-1} s_t^2 / alpha * sum_i w_i grad r_i / |grad r_i|``, the gradients of ``r_i(x0(x_t))`` with respect
    to x_t, ``lambda_t = 1.024^(t-1)``, t counting the steps that are left. Where a reward has no slope (or none that is
    a number), it does not pull.

    Args:
        rewards: differentiable, in the order of the weights.
        weights: w, float[m].
        alpha: the smaller, the stronger.
        estimates: see `clean_estimates`.
        prompts: one per image.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float]
    alpha: float
    estimates: Estimates
    prompts: Sequence[str]

    def __call__(self, state: StepState) -> Gaussian:
        with torch.enable_grad():
            latents = state.latents.detach().requires_grad_(True)
            output = state.network.output(BASE, latents, state.timestep, state.inputs)
            images = state.network.decode(self.estimates.at(state.index, latents, output))
            pull = torch.zeros_like(state.latents)
            for weight, reward in zip(self.weights, self.rewards, strict=True):
                if weight > 0:
                    total = reward(images, self.prompts).sum()
                    (gradient,) = torch.autograd.grad(total, latents, retain_graph=True)
                    pull += weight * _direction(gradient)
        state.keep(BASE, output.detach())
        left = len(state.steps) - state.index
        strength = _GROWTH ** (left - 2) * state.std() ** 2 / self.alpha
        return Gaussian(state.mean(output.detach()) + strength * pull, state.std())


def _direction(gradient: Tensor) -> Tensor:
    """Each image's gradient at length 1; 0 where it has no direction."""
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.where((length > 0) & length.isfinite(), gradient / length, 0.0)
