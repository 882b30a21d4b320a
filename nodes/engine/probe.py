"""Measures on one run how far plain stacking is from the blend, and the cost of each."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import comfy.samplers
from torch import Tensor

from ...blending.path_weights import effective_share, log_weight_change
from ...blending.plans import Blend, Gates, Plan, Soup
from ...blending.schedules import Coefficients, CoefficientSchedule, coefficients_at, is_uniform
from ...blending.step_info import StepInfo
from ..adapters.files import RewardLoRAs
from ..host import Denoiser, Patcher
from ..schema import SamplingOfWholeRuns
from .attach import attach
from .corrected import models_of
from .custom_sampling import sample_with
from .msdda import Transition, transition_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

METHODS = ("base", "soup", "blend")

# Samplers compute noise levels through log and exp, so equal levels may differ by rounding.
TOLERANCE = 1e-3


@dataclass
class Probe:
    """A planner that runs the method that its owner selects, and the measurements.

    Args:
        coefficients: the blend's, the same all over the image.
        adapters: m.
        method: one of `METHODS`, or "" outside a measurement, when the blend runs.
        steps: the measured steps, from 0.
        gaps: the linearity gap at each.
        effects: the distance of the blend from the base at each, a norm in latent units.
        seconds: the time of each method at each, guidance included.
        calls: the largest number of model calls of a blended step.
        weighed: whether the path weights of the blend's images are measured.
        log_weights: their logarithms, float64[B]; None where they are not measured. See `blending.path_weights`.
    """

    coefficients: Coefficients | CoefficientSchedule
    adapters: int
    method: str = ""
    steps: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {method: [] for method in METHODS})
    calls: int = 0
    weighed: bool = False
    log_weights: Tensor | None = None
    _now: Coefficients = ()
    _row: tuple[Gates, ...] = ()

    def __call__(self, step: StepInfo) -> Plan:
        if self.method == "row":
            return Plan((self._row,), (1.0,))
        if self.method == "base":
            return Blend((0.0,) * self.adapters)(step)
        if self.method != "blend":
            # Only the soup asks for the step, not the blend after it: the steps of some samplers are known by the order of
            # their evaluations.
            self._now = coefficients_at(self.coefficients, step)
        if self.method == "soup":
            return Soup(self._now)(step)
        plan = Blend(self._now)(step)
        self.calls = max(self.calls, len(plan.mix))
        return plan

    @property
    def repeats_evaluation(self) -> bool:
        """Whether the prediction that is being made repeats the sampler's evaluation with another method."""
        return self.method in (*METHODS[1:], "row")

    @property
    def mean_gap(self) -> float:
        """The mean gap."""
        return statistics.fmean(self.gaps)

    def seconds_per_step(self, method: str) -> float:
        """The median over the steps. The first step is left out, because it also loads and prepares."""
        return statistics.median(self.seconds[method][1:] or self.seconds[method])

    @property
    def share(self) -> float | None:
        """The effective share of the blend's images by their path weights, None where it is not measured."""
        return None if self.log_weights is None else float(effective_share(self.log_weights))

    def measure(self, step: int, predict: Callable[[], Tensor], transition: Transition | None = None) -> Tensor:
        """Run the three methods on the same input, record gap and seconds, and return the blend's prediction.

        The blend comes last, because some samplers read the branches that guidance saw last.

        Args:
            step: its index.
            predict: evaluates the denoiser by the present method.
            transition: the sampler's step, where its path weights are measured and it adds noise.
        """
        denoised: dict[str, Tensor] = {}
        for method in METHODS:
            if method == "blend" and self.weighed and transition is not None:
                self._weigh(predict, transition)
            self.method = method
            start = time.perf_counter()
            denoised[method] = predict()
            float(denoised[method].flatten()[0])  # waits for the device
            self.seconds[method].append(time.perf_counter() - start)
        self.method = ""
        self.steps.append(step)
        gap, effect = linearity_gap(denoised["blend"], denoised["soup"], denoised["base"])
        self.gaps.append(gap)
        self.effects.append(effect)
        return denoised["blend"]

    def _weigh(self, predict: Callable[[], Tensor], transition: Transition) -> None:
        """Add this step to the path weights: a further evaluation of each model."""
        self.method = "row"
        predictions: list[Tensor] = []
        models = models_of([float(c) for c in self._now])
        for gates, _ in models:
            self._row = (gates,)
            predictions.append(predict() * transition.b)  # the part of the mean that differs between the models
        change = log_weight_change(predictions, [c for _, c in models], transition.s).cpu()
        self.log_weights = change if self.log_weights is None else self.log_weights + change


def linearity_gap(blend: Tensor, soup: Tensor, base: Tensor) -> tuple[float, float]:
    """The share of the adapters' joint effect that plain stacking misses.

    ``|| sum_i c_i (D_i - D_0) - (D_soup - D_0) || / || sum_i c_i (D_i - D_0) || = ||D_blend - D_soup|| / ||D_blend - D_0||``

    Args:
        blend: x0 prediction, float[B, ...], latent units.
        soup: the same with the weights' updates averaged.
        base: the same without adapters.

    Returns:
        The gap, at least 0, and the effect ``||D_blend - D_0||``.
    """
    missed, effect = (float((blend - other).double().norm()) for other in (soup, base))
    if missed == 0:
        return 0.0, effect
    return missed / effect if effect > 0 else math.inf, effect


class ProbedModel:
    """The host's denoiser, measured by a probe at the first evaluation of each step.

    Args:
        model: the denoiser as the sampler gets it.
        probe: stores the measurements.
        levels: the run's noise levels, float[steps + 1].
    """

    def __init__(self, model: Denoiser, probe: Probe, levels: Sequence[float]) -> None:
        self._model, self._probe, self._levels = model, probe, levels
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        level = float(sigma.flatten()[0])
        for step in range(self._next, len(self._levels) - 1):
            if abs(level - self._levels[step]) <= TOLERANCE * self._levels[step]:
                self._next = step + 1
                return self._probe.measure(step, lambda: self._model(x, sigma, *args, **kwargs), self._transition(step))
        return self._model(x, sigma, *args, **kwargs)

    def _transition(self, step: int) -> Transition | None:
        if not self._probe.weighed or self._levels[step + 1] == 0:
            return None
        transition, noise_scale = transition_of(self._model.inner_model.inner_model.model_sampling)
        made = transition(self._levels[step], self._levels[step + 1], 1.0)
        return replace(made, s=made.s * noise_scale)


def probe_run(
    model: Patcher,
    loras: RewardLoRAs,
    coefficients: Coefficients | CoefficientSchedule,
    **sampling: Unpack[SamplingOfWholeRuns],
) -> tuple[Probe, dict[str, Any]]:
    """Run the blend, and evaluate soup and base beside it at every step.

    Returns:
        The measurements, and the latent.

    Raises:
        ValueError: the coefficients differ within the image, the blend has no effect, or the sampler never evaluates at a
            level of its schedule.
    """
    if not is_uniform(coefficients):
        raise ValueError(
            "Blend Probe compares with plain stacking, which has one preference for the whole image: connect a preference "
            "without regions."
        )
    probe = Probe(coefficients, len(loras.adapters))
    blended = attach(model, loras, probe, images=sampling["latent_image"].get("batch_index"))
    options: dict[str, Any] = dict(sampling)
    name = options.pop("sampler_name")
    # Only this sampler's step is known here, and a share of one image says nothing.
    probe.weighed = name == "euler_ancestral" and sampling["latent_image"]["samples"].shape[0] > 1
    sampler: Any = comfy.samplers.sampler_object(name)
    inner = sampler.sampler_function

    @functools.wraps(inner)  # the step tracker reads the function's name
    def probed(denoiser: Denoiser, noise: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        levels = [float(sigma) for sigma in sigmas]
        return inner(ProbedModel(denoiser, probe, levels), noise, sigmas, *args, **kwargs)

    sampler.sampler_function = probed
    latent = sample_with(sampler, name, blended, denoise=1.0, **options)
    if not probe.gaps:
        raise ValueError(f"The sampler {name} evaluates at noise levels of its own: choose another, such as euler.")
    if not any(probe.effects):
        raise ValueError("The blend is the base model at every step (is kl_scale 0?): there is nothing to compare.")
    return probe, latent
