"""Which denoising step a model call belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...blending.step_info import StepInfo
from ..host import Sampler

# These samplers of the host also evaluate at a later level of the schedule before their step ends. Heun's do so at the
# step's end, the two-stage ancestral ones at the midpoint towards sigma_down, which for eta 1 is the next level. The noise
# level alone cannot tell such a call from the first call of the next step. The order of calls and callbacks can.
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

# Samplers compute noise levels by log and exp, so equal levels may differ by rounding.
TOLERANCE = 1e-4


class StepTracker:
    """Tracks the steps of a run by its noise levels and the sampler's callback.

    Args:
        sampler: the host's sampler object. The name of its function tells whether it looks ahead.
        seed: the run's seed.
        images: image indices of the batch, None for 0, 1, 2, ...
        latent: shape of the run's latent, [B, C, ...].
    """

    def __init__(
        self, sampler: Sampler, seed: int | None, images: tuple[int, ...] | None, latent: Sequence[int] = ()
    ) -> None:
        function = getattr(sampler, "sampler_function", None)
        self.looks_ahead = getattr(function, "__name__", "") in LOOK_AHEAD_SAMPLERS
        self.seed = 0 if seed is None else int(seed)
        self.images = images
        self.latent = tuple(latent)
        self._schedule: list[float] | None = None
        self._callback_of: int | None = None
        self._seen: list[float] = []
        self._inside = False  # whether an evaluation since the callback was between two levels
        self._evaluations = 0
        self._known: tuple[int, int] | None = None  # an evaluation and its step

    def begin_evaluation(self) -> None:
        """Count an evaluation of the sampler. All its model calls belong to one step."""
        self._evaluations += 1

    def observe(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """Wrap the sampler's callback to track the current step.

        Samplers call it after the first evaluation of each step.
        """

        def observed(step: int, *args: Any, **kwargs: Any) -> Any:
            self._callback_of, self._seen, self._inside = step, [], False
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
            images=image_indices(self.images, batch),
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
        last = len(schedule) - 2
        if self._callback_of is None:
            return step_of(sigma, schedule)
        if not any(_close(sigma, level) for level in schedule):
            # Inside a step. Ancestral samplers go below the step's end there, so the level does not tell the step.
            self._inside = True
            return min(self._callback_of, last)
        if not self.looks_ahead:
            return step_of(sigma, schedule)
        # The second evaluation at this level since the callback belongs to the next step. If the midpoint was not a level
        # of the schedule (flow models, an eta below 1), the first one does, too.
        if self._inside or any(_close(sigma, seen) for seen in self._seen):
            return min(self._callback_of + 1, last)
        self._seen.append(sigma)
        return min(self._callback_of, last)


def image_indices(images: tuple[int, ...] | None, batch: int) -> Sequence[int]:
    """Return the images' indices: those of the latent if it has one for each image, else 0, 1, 2, ..."""
    return images if images is not None and len(images) == batch else range(batch)


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


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
