"""Which denoising step a model call belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

# Samplers of the host that also evaluate at a later level of the schedule before their step ends. The noise level alone
# cannot tell such a call from the next step's first one; the order of calls and callbacks can.
LOOK_AHEAD_SAMPLERS = frozenset({"sample_heun", "sample_heunpp2", "sample_exp_heun_2_x0", "sample_exp_heun_2_x0_sde"})

# Samplers compute levels through log and exp, so equal levels may differ by rounding.
TOLERANCE = 1e-4


class StepTracker:
    """Follows a run's steps through its noise levels and the sampler's callback.

    Args:
        sampler: the host's sampler object; its function's name says whether it looks ahead.
        seed: the run's seed.
        images: image indices of the batch, None for 0, 1, 2, ...
    """

    def __init__(self, sampler: Any, seed: int | None, images: tuple[int, ...] | None) -> None:
        function = getattr(sampler, "sampler_function", None)
        self.looks_ahead = getattr(function, "__name__", "") in LOOK_AHEAD_SAMPLERS
        self.seed = 0 if seed is None else int(seed)
        self.images = images
        self.schedule: list[float] | None = None
        self._current: int | None = None
        self._seen: list[float] = []

    def observe(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, with an ear: samplers call it after the first evaluation of each step."""

        def observed(step: int, *args: Any, **kwargs: Any) -> Any:
            self._current, self._seen = step, []
            return None if callback is None else callback(step, *args, **kwargs)

        return observed

    def at(self, transformer_options: dict[str, Any], sigmas: Tensor, batch: int) -> RunStep:
        """Where a model call stands.

        Args:
            transformer_options: the call's, with the run's schedule.
            sigmas: the call's noise levels, float[N], all equal.
            batch: how many images the batch has.
        """
        return RunStep(self, transformer_options, sigmas, batch)

    def index(self, transformer_options: dict[str, Any], sigmas: Tensor) -> int:
        """The step of a call at this noise level; asked once a call."""
        if self.schedule is None:
            schedule = transformer_options.get("sample_sigmas")
            if schedule is None or len(schedule) < 2:
                raise ValueError(
                    "This sampler gives no schedule of noise levels, which drawing one adapter per step needs."
                )
            self.schedule = [float(sigma) for sigma in schedule]
        sigma = float(sigmas.flatten()[0])
        if self.looks_ahead and self._current is not None:
            return self._after_callback(sigma, self._current)
        return step_of(sigma, self.schedule)

    def _after_callback(self, sigma: float, current: int) -> int:
        """First calls at later levels belong to the step whose callback came last; a repeated level opens the next one."""
        assert self.schedule is not None
        last = len(self.schedule) - 2
        if any(_close(sigma, seen) for seen in self._seen):
            return min(current + 1, last)
        self._seen.append(sigma)
        return current


class RunStep:
    """A model call's step, worked out only if the plan asks: reading a noise level waits for a GPU."""

    def __init__(self, tracker: StepTracker, transformer_options: dict[str, Any], sigmas: Tensor, batch: int) -> None:
        self._tracker, self._options, self._sigmas = tracker, transformer_options, sigmas
        self.images: Sequence[int] = image_indices(tracker.images, batch)
        self.seed = tracker.seed

    @cached_property
    def index(self) -> int:
        return self._tracker.index(self._options, self._sigmas)

    @cached_property
    def count(self) -> int:
        _ = self.index  # reads the schedule
        assert self._tracker.schedule is not None
        return len(self._tracker.schedule) - 1


def image_indices(images: tuple[int, ...] | None, batch: int) -> Sequence[int]:
    """The images' indices; a latent's own where it gives one for each image."""
    return images if images is not None and len(images) == batch else range(batch)


def step_of(sigma: float, schedule: Sequence[float]) -> int:
    """The step whose interval of noise levels holds sigma: it starts at its first level and ends before its second.

    Args:
        sigma: noise level.
        schedule: the run's levels, float[steps + 1], falling (or rising, where noise is added).

    Returns:
        0 .. steps - 1; levels outside the schedule belong to the nearest step.
    """
    falling = schedule[0] >= schedule[-1]
    reached = sum(1 for level in schedule if (level >= sigma if falling else level <= sigma) or _close(level, sigma))
    return min(max(reached - 1, 0), len(schedule) - 2)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
