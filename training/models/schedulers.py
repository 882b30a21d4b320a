"""Any scheduler of diffusers over a base's own schedule, in place of the policy's DDIM or Euler steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from ..flow import TIMESTEPS

_SMALLEST_ALPHA_BAR = 1e-12
"""A zero terminal SNR has abar 0, where the noise level would be infinite."""


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler by name.

    Attributes:
        name: diffusers' class, for example ``EulerAncestralDiscreteScheduler``.
        options: entries that replace those of the base's own scheduler configuration.
        eta: noise scale, for the classes whose ``step`` takes one (DDIM, TCD).
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0


@dataclass(frozen=True)
class NoiseLevels:
    """The noise level of each network call of a run.

    Attributes:
        timesteps: the times that the network gets, int64[T] or float32[T]; a scheduler may ask twice at one time.
        signal: factor of the clean latent in the noisy one, float64[T].
        noise: factor of the noise in the noisy latent, float64[T].
        x0_output: factor of the network's output in its x0 prediction, float64[T].
    """

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    x0_output: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class SchedulerRun:
    """A scheduler at the start of a run. Schedulers remember earlier steps, so a run has one of its own.

    Attributes:
        scheduler: diffusers' scheduler with its timesteps set.
        levels: of each network call.
        eta: see `SchedulerChoice`.
    """

    scheduler: Any
    levels: NoiseLevels
    eta: float

    def start(self, noise: Tensor) -> Tensor:
        """The first latent of standard normal noise, as diffusers' pipelines make it."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def scaled(self, index: int, latents: Tensor) -> Tensor:
        """The network's input at a call."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, self.scheduler.timesteps[index])

    def step(self, index: int, output: Tensor, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next latents.

        Args:
            index: of the network call.
            output: guided network output, float32[B, C, H, W].
            latents: before the step, same shape.
            generators: one per picture, [B].
        """
        accepted = inspect.signature(self.scheduler.step).parameters
        own = {"generator": list(generators), "eta": self.eta}
        arguments = {name: value for name, value in own.items() if name in accepted}
        timestep = self.scheduler.timesteps[index]
        return self.scheduler.step(output, timestep, latents, return_dict=False, **arguments)[0]


SchedulerMaker = Callable[[Mapping[str, Any], SchedulerChoice, int], SchedulerRun]


def noise_scheduler(config: Mapping[str, Any], choice: SchedulerChoice, steps: int) -> SchedulerRun:
    """A scheduler over the noise schedule of a UNet.

    Args:
        config: the base's own scheduler configuration (betas, prediction type, spacing).
        choice: the scheduler.
        steps: the number of steps.

    Raises:
        ValueError: a class that is not built from betas, or that cannot run.
    """
    kind = scheduler_class(choice)
    if "beta_start" not in inspect.signature(kind.__init__).parameters:
        raise ValueError(
            f"scheduler {choice.name} is not built from a noise schedule's betas, which this base has: choose one that is, "
            "for example EulerAncestralDiscreteScheduler"
        )
    scheduler = _built(kind, {**config, **choice.options}, choice)
    _set_timesteps(scheduler, choice, steps)
    return SchedulerRun(scheduler, _noise_levels(scheduler), choice.eta)


def _noise_levels(scheduler: Any) -> NoiseLevels:
    """Levels at a scheduler's timesteps, which may lie between those of the training."""
    noise_schedule: Any = DDIMScheduler.from_config(dict(scheduler.config))
    alpha_bar = noise_schedule.alphas_cumprod.double().clamp(min=_SMALLEST_ALPHA_BAR).numpy()
    timesteps = torch.as_tensor(scheduler.timesteps).cpu()
    log_snr = np.interp(timesteps.double().numpy(), np.arange(len(alpha_bar)), np.log(alpha_bar / (1 - alpha_bar)))
    share = torch.sigmoid(torch.from_numpy(log_snr))
    signal, noise = share.sqrt(), (1 - share).sqrt()
    prediction = scheduler.config.get("prediction_type", "epsilon")
    to_x0 = {"epsilon": -noise / signal, "v_prediction": -noise, "sample": torch.ones_like(noise)}[prediction]
    return NoiseLevels(timesteps, signal, noise, to_x0)


def flow_scheduler(
    config: Mapping[str, Any], choice: SchedulerChoice, steps: int, times: Callable[[], dict[str, Any]]
) -> SchedulerRun:
    """A scheduler over the times of a flow-matching base.

    Args:
        config: the base's own configuration, of FlowMatchEulerDiscreteScheduler.
        choice: the scheduler.
        steps: the number of steps.
        times: the arguments ``sigmas`` and ``mu`` that the base's pipeline gives to ``set_timesteps``, where there are any.

    Raises:
        ValueError: a class that knows no flow, or that cannot run.
    """
    kind = scheduler_class(choice)
    changes: dict[str, Any] = {}
    if "use_flow_sigmas" in inspect.signature(kind.__init__).parameters:
        shift = config.get("shift") or 1.0
        changes = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    elif not choice.name.startswith("FlowMatch"):
        raise ValueError(
            f"scheduler {choice.name} knows no flow matching, which this base needs: choose FlowMatchEulerDiscreteScheduler, "
            "FlowMatchHeunDiscreteScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler"
        )
    scheduler = _built(kind, {**config, **changes, **choice.options}, choice)
    wanted = times() if not changes or scheduler.config.get("use_dynamic_shifting") else {}
    if changes:
        wanted.pop("sigmas", None)  # diffusers' pipelines leave them to these classes
    _set_timesteps(scheduler, choice, steps, **wanted)
    timesteps = torch.as_tensor(scheduler.timesteps).cpu()
    time = timesteps.double() / TIMESTEPS
    return SchedulerRun(scheduler, NoiseLevels(timesteps, 1 - time, time, -time), choice.eta)


def scheduler_class(choice: SchedulerChoice) -> Any:
    """The class of a scheduler.

    Raises:
        ValueError: diffusers has no such class, its ``step`` needs more than an output and a latent, or an option is unknown.
    """
    kind = getattr(diffusers, choice.name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler {choice.name!r}: diffusers {diffusers.__version__} has no such scheduler")
    for function, given in ((kind.step, 4), (kind.set_timesteps, 2)):  # pyright: ignore[reportAttributeAccessIssue]
        needed = [
            name
            for name, p in inspect.signature(function).parameters.items()
            if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        if len(needed) > given:
            raise ValueError(
                f"scheduler {choice.name} needs {needed[given]!r}, which a sweep does not have: choose another one"
            )
    accepted = list(inspect.signature(kind.__init__).parameters)[1:]
    unknown = [name for name in choice.options if name not in accepted]
    if unknown:
        raise ValueError(f"scheduler_options names {unknown[0]!r}; {choice.name} has {', '.join(accepted)}")
    return kind


def _built(kind: Any, config: Mapping[str, Any], choice: SchedulerChoice) -> Any:
    try:
        return kind.from_config(dict(config))
    except (ImportError, ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        raise ValueError(f"scheduler {choice.name} cannot be built for this base: {error}") from error


def _set_timesteps(scheduler: Any, choice: SchedulerChoice, steps: int, **times: Any) -> None:
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    strange = [name for name in times if name not in accepted]
    if strange:
        raise ValueError(
            f"scheduler {choice.name} takes no {strange[0]}, which this base's pipeline sets: choose another"
        )
    # The number is given only where no times are: a scheduler that gets both checks that they agree.
    try:
        scheduler.set_timesteps(**(times if "sigmas" in times else {"num_inference_steps": steps, **times}))
    except (ValueError, IndexError, AssertionError) as error:
        raise ValueError(f"scheduler {choice.name} cannot take {steps} steps: {error}") from error
    timesteps = torch.as_tensor(scheduler.timesteps).double()
    if bool((timesteps[1:] > timesteps[:-1]).any()):
        raise ValueError(
            f"scheduler {choice.name} goes from a picture to noise: choose one that goes from noise to a picture"
        )


def check_run(make: Callable[[], SchedulerRun], name: str) -> None:
    """Run a scheduler with a trivial network, and check that each picture's noise is its own.

    Args:
        make: a fresh run.
        name: of the scheduler, for the message.

    Raises:
        ValueError: the scheduler cannot run, or a picture depends on those beside it or on the global generator.
    """
    first, second, before = make(), make(), torch.get_rng_state()
    try:
        both, alone = _trivial_run(first, [0, 1]), _trivial_run(second, [1])
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, IndexError) as error:
        raise ValueError(f"scheduler {name} cannot run on this base: {error}") from error
    # The comparison is exact up to the rounding of vectorized loops.
    if not torch.equal(before, torch.get_rng_state()) or not torch.allclose(both[1:], alone, rtol=1e-4, atol=1e-4):
        torch.set_rng_state(before)
        raise ValueError(
            f"scheduler {name} draws noise that is not each picture's own, so pictures would depend on the batch: choose "
            "another one, or options without noise"
        )
    if not bool(both.isfinite().all()):
        raise ValueError(f"scheduler {name} gives numbers that are not finite at this base's times: choose another one")


def _trivial_run(run: SchedulerRun, pictures: Sequence[int]) -> Tensor:
    """Latents float32[B, 1, 8, 8] of a network whose output is a tenth of its input."""
    generators = [torch.Generator().manual_seed(picture) for picture in pictures]
    latents = run.start(torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators]))
    for index in range(len(run.levels)):
        latents = run.step(index, 0.1 * run.scaled(index, latents), latents, generators)
    return latents
