"""The denoising loop that all methods of a sweep share, and the steps of each method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...blending.combine import combine, evaluate
from ...blending.msdda import fuse_gaussians, step_factors
from ...blending.plans import Gates, Planner
from ...blending.residual_cache import ResidualCache
from ...blending.step_info import StepInfo
from ...training.models.protocol import Conditioning
from ...training.models.schedulers import NoiseLevels
from ...training.policy import PolicySteps
from .network import Network

Row = tuple[Gates, ...]

_LEAST_SIGNAL = 1e-3
"""A flow begins without any signal, where the noise level would be infinite."""


@dataclass(frozen=True)
class Chunk:
    """The pictures of one unit of work.

    Attributes:
        images: their indices in the point, [B].
        prompts: one each.
        numbers: which picture of its prompt each is, [B].
        conditioning: one row each.
        noise: starting latent and one draw per step, float32[B, T + 1, C, H, W].
    """

    images: Sequence[int]
    prompts: Sequence[str]
    numbers: Sequence[int]
    conditioning: Conditioning
    noise: Tensor


@dataclass
class Cost:
    """What a chunk cost.

    Attributes:
        calls: guided network evaluations per picture that the method needs.
        extra_calls: the same for measuring the KL to the base.
        extra_seconds: time that measuring took, of the whole chunk.
    """

    calls: float = 0.0
    extra_calls: float = 0.0
    extra_seconds: float = 0.0


@dataclass(frozen=True)
class Gaussian:
    """A step's distribution, ``N(mean, std^2)`` per element; mean float32[B, C, H, W], std 0 for a step without noise."""

    mean: Tensor
    std: float


@dataclass
class StepState:
    """One step of a run: the latents, and the network's predictions at them.

    Predictions are cached for the step, so that asking twice for a row of gates costs one call.
    """

    network: Network
    steps: PolicySteps | NoiseLevels
    index: int
    seed: int
    images: Sequence[int]
    latents: Tensor
    inputs: dict[str, Tensor]
    cost: Cost
    _known: dict[Row, Tensor] = field(default_factory=dict)

    @property
    def info(self) -> StepInfo:
        """The step as a planner takes it."""
        return StepInfo(self.index, len(self.steps), self.seed, self.images, pixels=None)

    @property
    def policy(self) -> PolicySteps:
        """The Gaussian steps; a scheduler of diffusers has none."""
        assert isinstance(self.steps, PolicySteps)  # methods that need them are refused with a scheduler
        return self.steps

    @property
    def timestep(self) -> float:
        """The time that the network gets; whole numbers for the noise schedules of UNets."""
        return self.steps.timesteps[self.index].item()

    def predict(self, row: Row) -> Tensor:
        """Guided network output through a row of gates, float32[B, C, H, W]."""
        if row not in self._known:
            self._known[row] = self.network.output(row, self.latents, self.timestep, self.inputs)
            self.cost.calls += 1
        return self._known[row]

    def keep(self, row: Row, output: Tensor) -> None:
        """Remember a prediction that was made elsewhere, and count its call."""
        self._known[row] = output
        self.cost.calls += 1

    def mean(self, output: Tensor, steps: PolicySteps | None = None) -> Tensor:
        """The sampler's mean for a network output, ``state * x + output * out``."""
        steps = steps or self.policy
        return float(steps.state[self.index]) * self.latents + float(steps.output[self.index]) * output

    def std(self, steps: PolicySteps | None = None) -> float:
        """The sampler's standard deviation at this step."""
        return float((steps or self.policy).std[self.index])


class Stepper(Protocol):
    """A method as one Gaussian per step."""

    def __call__(self, state: StepState) -> Gaussian: ...


class Predictor(Stepper, Protocol):
    """A method as one prediction per step, which any sampler can take."""

    def output(self, state: StepState) -> Tensor:
        """The method's guided network output, float32[B, C, H, W]."""
        ...


@dataclass(frozen=True)
class Planned:
    """Every method that is a plan of gates and mix (``blending.plans``): base, blend, stochastic, soup, one adapter."""

    planner: Planner

    def __call__(self, state: StepState) -> Gaussian:
        return Gaussian(state.mean(self.output(state)), state.std())

    def output(self, state: StepState) -> Tensor:
        return evaluate(self.planner(state.info), state.predict)


@dataclass
class PlannedWithResidual:
    """A plan whose steps add a residual that an earlier step cached (``blending.plans.EarlyBlend``). One object per run.

    The residual is one of x0 predictions, for every prediction type of the network.

    Args:
        planner: makes the plans.
    """

    planner: Planner
    residuals: ResidualCache = field(default_factory=ResidualCache)

    def __call__(self, state: StepState) -> Gaussian:
        return Gaussian(state.mean(self.output(state)), state.std())

    def output(self, state: StepState) -> Tensor:
        plan = self.planner(state.info)
        outputs = [state.predict(row) for row in plan.gates]
        output = combine(outputs, plan.mix)
        noise, signal = state.steps.noise[state.index], state.steps.signal[state.index]
        sigma = (noise / signal.clamp(min=_LEAST_SIGNAL)).repeat(len(output))
        to_x0 = float(state.steps.x0_output[state.index])
        if plan.residual_mix is not None:
            self.residuals.store([None], to_x0 * combine(outputs, plan.residual_mix), sigma, state.index)
        if plan.extrapolation is not None:
            output = self.residuals.extrapolate([None], to_x0 * output, sigma, plan.extrapolation) / to_x0
        return output


@dataclass(frozen=True)
class MsddaStep:
    """Every adapter's own Gaussian step, fused (arXiv 2604.14379; `blending.msdda.step_factors`).

    Args:
        coefficients: c, float[m]; the base model takes ``1 - sum c``.
        etas: every adapter's own noise scale, float[m].
        steps: the sampler with each noise scale.
    """

    coefficients: Gates
    etas: Sequence[float]
    steps: Mapping[float, PolicySteps]

    def __call__(self, state: StepState) -> Gaussian:
        factors = step_factors(self.coefficients, self.etas)
        means = [state.mean(state.predict((factor.gates,)), self.steps[factor.eta]) for factor in factors]
        deviations = [state.std(self.steps[factor.eta]) for factor in factors]
        silent = not any(deviations)  # a last step without noise: the mean for any equal deviations
        mix = [factor.coefficient for factor in factors]
        mean, std = fuse_gaussians(means, [1.0] * len(means) if silent else deviations, mix)
        return Gaussian(mean, 0.0 if silent else std)


def gaussian_divergence(policy: Gaussian, base: Gaussian) -> Tensor:
    """``KL(N(m, s^2) || N(m_0, s_0^2)) = |m - m_0|^2 / (2 s_0^2) + n (log(s_0 / s) + s^2 / (2 s_0^2) - 1/2)``.

    With equal deviations that is the step's term of DPOK's KL (arXiv 2305.16381, eq. 12).

    Args:
        policy: of a method, std above 0.
        base: of the base, std above 0.

    Returns:
        float64[B], nats.
    """
    distance = (policy.mean.double() - base.mean.double()).square().flatten(1).sum(1)
    ratio = torch.tensor(policy.std / base.std, dtype=torch.float64)
    spread = policy.mean[0].numel() * (ratio.square() / 2 - 0.5 - ratio.log())
    return distance / (2 * base.std**2) + spread.to(distance.device)


@dataclass(frozen=True)
class Samples:
    """Clean latents float32[B, C, H, W], and each picture's KL to the base, float64[B] (None: not defined or asked).

    ``log_weights`` are the blend's path weights, float64[B] (`path_shares`).
    """

    latents: Tensor
    kl: Tensor | None
    log_weights: Tensor | None = None


def run_steps(
    stepper: Stepper,
    network: Network,
    steps: PolicySteps,
    chunk: Chunk,
    seed: int,
    cost: Cost,
    *,
    adapters: int,
    measure_kl: bool,
) -> Samples:
    """Denoise a chunk with a method that is one Gaussian per step.

    ``x_next = mean + std * noise``; the KL is the sum over the noisy steps of `gaussian_divergence` to the base's step at
    the method's own latents. For stochastic draws that is the KL of the drawn sequence of adapters, an upper bound.

    Args:
        stepper: the method.
        network: with the method's adapters attached.
        steps: the sampler.
        chunk: prompts and noise.
        seed: of the draws.
        cost: gets the costs.
        adapters: how many gates a row has.
        measure_kl: also ask the base at every step.
    """
    inputs = network.inputs(chunk.conditioning)
    noise = chunk.noise.to(network.device)
    latents = noise[:, 0]
    kl = torch.zeros(len(latents), dtype=torch.float64, device=network.device) if measure_kl else None
    for index in range(len(steps)):
        state = StepState(network, steps, index, seed, chunk.images, latents, inputs, cost)
        policy = stepper(state)
        if kl is not None and policy.std > 0:
            kl = kl + _measured(state, policy, adapters)
        latents = policy.mean if policy.std == 0 else policy.mean + policy.std * noise[:, index + 1]
    return Samples(latents, kl)


def _measured(state: StepState, policy: Gaussian, adapters: int) -> Tensor:
    start, calls = now(state.network.device), state.cost.calls
    base = Gaussian(state.mean(state.predict((((0.0,) * adapters),))), state.std())
    divergence = gaussian_divergence(policy, base)
    state.cost.extra_calls += state.cost.calls - calls
    state.cost.calls = calls
    state.cost.extra_seconds += now(state.network.device) - start
    return divergence


def now(device: torch.device) -> float:
    """Seconds on a clock that has waited for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
