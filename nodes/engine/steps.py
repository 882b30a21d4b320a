"""Which denoising step a model call belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.k_diffusion.sampling
from torch import Tensor

from ...blending.step_info import StepInfo
from ..host import Sampler
from .images import ImageIndices

EVALUATIONS = {
    "sample_heun": 2,
    "sample_heunpp2": 3,
    "sample_exp_heun_2_x0": 2,
    "sample_exp_heun_2_x0_sde": 2,
    "sample_dpm_2": 2,
    "sample_dpm_2_ancestral": 2,
    "sample_dpmpp_2s_ancestral": 2,
    "sample_dpmpp_2s_ancestral_cfg_pp": 2,
    "sample_dpmpp_sde": 2,
    "sample_dpmpp_sde_gpu": 2,
    "sample_seeds_2": 2,
    "sample_seeds_3": 3,
    "sample_sa_solver_pece": 2,
}
"""The largest number of evaluations of one step, by the name of the host's function. Other samplers evaluate once a step."""

# These samplers also evaluate at a later level of the schedule before their step ends. Heun's do so at the step's end, the
# two-stage ancestral ones at the midpoint towards sigma_down, which for eta 1 is the next level. The noise level alone cannot
# tell such a call from the first call of the next step. The order of calls and callbacks can.
LOOK_AHEAD_SAMPLERS = frozenset(
    {
        "sample_heun",
        "sample_heunpp2",
        "sample_exp_heun_2_x0",
        "sample_exp_heun_2_x0_sde",
        "sample_dpm_2_ancestral",
        "sample_dpmpp_2s_ancestral",
        "sample_dpmpp_2s_ancestral_cfg_pp",
    }
)

# Karras' stochastic samplers raise a level by up to sqrt(2). Nodes that change the level of a call change it by less.
LARGEST_CHANGE = 1.5

# Samplers compute noise levels by log and exp, so equal levels may differ by rounding.
TOLERANCE = 1e-4


class StepTracker:
    """Tracks the steps of a run by its noise levels, and by the sampler's callback where the levels do not tell.

    A sampler calls the callback after the first evaluation of each step. An evaluation belongs to

    1. the step of the callback before it, if the sampler is known to evaluate a step several times and this is one of them;
    2. else the step that begins at its noise level, if the level is one of the schedule;
    3. else the step after that callback, if the level is near: the sampler, or a node around it, has changed the level;
    4. else the step whose interval contains its level: the sampler chooses levels of its own.

    Args:
        sampler: the host's sampler object. The name of its function, or of that inside a node's wrapper, tells its kind.
        seed: the run's seed.
        images: the indices of the run's images.
        latent: shape of the run's latent, [B, C, ...].
        caller: the name of another node's function that calls the model, for instance with tiles; empty for none.
    """

    def __init__(
        self,
        sampler: Sampler,
        seed: int | None,
        images: ImageIndices,
        latent: Sequence[int] = (),
        caller: str = "",
    ) -> None:
        name = function_name(sampler)
        self.looks_ahead = name in LOOK_AHEAD_SAMPLERS
        self.follows = hasattr(comfy.k_diffusion.sampling, name)
        self.most_evaluations = EVALUATIONS.get(name, 1)
        self.seed = 0 if seed is None else int(seed)
        self.images = images
        self.latent = tuple(latent)
        self.caller = caller
        self._schedule: list[float] | None = None
        self._evaluations = 0
        self._known: tuple[int, int] | None = None  # an evaluation and its step
        self._callback_of = -1  # the number in the last callback
        self._began: tuple[int, int] | None = None  # the number of evaluations at the last callback, and their step
        self._seen: list[float] = []  # levels since the last callback

    def begin_evaluation(self) -> None:
        """Count an evaluation of the sampler. All its model calls belong to one step."""
        self._evaluations += 1

    def observe(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """Wrap the sampler's callback to track the current step.

        Samplers call it after the first evaluation of each step.
        """

        def observed(step: int, *args: Any, **kwargs: Any) -> Any:
            self._began, self._seen = None if self._known is None else (self._evaluations, self._known[1]), []
            follows = step == self._callback_of + 1 and (self._known is None or self._known[1] == step)
            self.follows = self.follows and follows
            self._callback_of = step
            return None if callback is None else callback(step, *args, **kwargs)

        return observed

    def step_info(
        self, transformer_options: dict[str, Any], sigmas: Tensor, batch: int, shape: Sequence[int] = ()
    ) -> StepInfo:
        """Where a model call stands. Noise levels are read only if the plan asks, because that waits for a GPU.

        Args:
            transformer_options: the call's, with the run's schedule.
            sigmas: the call's noise levels, float[N], all equal.
            batch: the number of images of the batch.
            shape: the call's latents' shape, [N, C, ...].
        """
        return StepInfo(
            index=lambda: self.index(transformer_options, sigmas),
            count=lambda: len(self.schedule_of(transformer_options)) - 1,
            seed=self.seed,
            images=lambda: self.images.of_call(batch, transformer_options),
            pixels=lambda: self.pixels(shape),
        )

    def pixels(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of a call's latents.

        Args:
            shape: of the call's latents, [N, C, ...].

        Raises:
            ValueError: the latent is no image or video, or the call covers only an area of it.
        """
        if len(shape) not in (4, 5):
            raise ValueError(
                f"A regional preference needs the latent of an image or a video, and this model's has shape "
                f"{list(shape)}. Use one preference for the whole."
            )
        if tuple(shape[-2:]) != self.latent[-2:] and self.caller:
            raise ValueError(
                f"A regional preference cannot be combined with tiles: {self.caller} calls the model with {list(shape[-2:])} of "
                f"the latent's {list(self.latent[-2:])} pixels, and does not say which. Remove the tiling node from this MODEL, "
                "or use one preference for the whole image."
            )
        if tuple(shape[-2:]) != self.latent[-2:]:
            raise ValueError(
                f"A regional preference cannot be combined with a conditioning that has an area: the model is asked for "
                f"{list(shape[-2:])} of the latent's {list(self.latent[-2:])} pixels. Use Conditioning (Set Mask) "
                "instead of an area."
            )
        return shape[-2], shape[-1]

    def schedule_of(self, transformer_options: dict[str, Any]) -> list[float]:
        """Return the run's noise levels, float[steps + 1]. They are read once a run."""
        if self._schedule is None:
            schedule = transformer_options.get("sample_sigmas")
            if schedule is None or len(schedule) < 2:
                raise ValueError(
                    "This sampler gives no schedule of noise levels. A preference schedule, and drawing one adapter per "
                    "step, need it."
                )
            self._schedule = [float(sigma) for sigma in schedule]
        return self._schedule

    def index(self, transformer_options: dict[str, Any], sigmas: Tensor) -> int:
        """Return the step of a model call. It is determined once per evaluation."""
        if self._known is None or self._known[0] != self._evaluations or self._evaluations == 0:
            step = self._step_of_evaluation(float(sigmas.flatten()[0]), self.schedule_of(transformer_options))
            self._known = (self._evaluations, step)
        return self._known[1]

    def _step_of_evaluation(self, sigma: float, schedule: list[float]) -> int:
        again = any(_close(sigma, seen) for seen in self._seen)
        self._seen.append(sigma)
        at_level = any(_close(sigma, level) for level in schedule)
        by_level = step_of(sigma, schedule)
        if self._began is not None and not again and (self.looks_ahead or not at_level):
            evaluation, step = self._began
            if self._evaluations - evaluation < self.most_evaluations:
                return step
        expected = min(self._callback_of + 1, len(schedule) - 2)
        if not at_level and self.follows and _is_near(sigma, by_level, expected, schedule):
            return expected
        return by_level


def function_name(sampler: Any) -> str:
    """Return the name of a sampler's function. A node that wraps a sampler holds it among its options."""
    for inner in getattr(sampler, "extra_options", {}).values():
        if hasattr(inner, "sampler_function"):
            return function_name(inner)
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def step_of(sigma: float, schedule: Sequence[float]) -> int:
    """Return the step whose interval of noise levels contains sigma. An interval excludes the next step's level.

    Args:
        sigma: noise level.
        schedule: the run's levels, float[steps + 1], falling (or rising, when noise is added).

    Returns:
        0 .. steps - 1. A level outside the schedule belongs to the nearest step.
    """
    falling = schedule[0] >= schedule[-1]
    reached = sum(1 for level in schedule if (level >= sigma if falling else level <= sigma) or _close(level, sigma))
    return min(max(reached - 1, 0), len(schedule) - 2)


def _is_near(sigma: float, by_level: int, expected: int, schedule: Sequence[float]) -> bool:
    level = schedule[expected]
    return abs(by_level - expected) <= 1 or level / LARGEST_CHANGE <= sigma <= level * LARGEST_CHANGE


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
