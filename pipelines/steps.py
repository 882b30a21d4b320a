"""Which denoising step a network's call belongs to, and how many steps the run has, seen from its timesteps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

Count = Callable[[float], int]
"""Takes the timestep of a run's first call and returns the number of its steps."""


_TURN = 0.05
"""A run has ended where the timestep turns back by more than this share of the way that it has come. Schedulers of second order
round some timesteps to slightly before the ones that follow."""


class Steps:
    """Follows the denoising step by the timesteps of the network's calls.

    Timesteps fall over a run, or rise where a network counts from noise to picture (Z-Image). Where they turn back, another run
    begins.

    Args:
        count: of the run's steps.

    Attributes:
        index: of the present step; -1 before the first call.
        count: steps of the run; as many as have been seen if there are more.
    """

    def __init__(self, count: Count) -> None:
        self.index, self.count = -1, 0
        self._count_of = count
        self._first = self._last = math.nan

    def see(self, timestep: float) -> None:
        """Count a step when the timestep changes."""
        if timestep == self._last:
            return
        way = self._last - self._first
        back = -math.copysign(1.0, way) * (timestep - self._last)
        if self.index < 0 or (way != 0 and back > _TURN * abs(way)):
            self.index, self.count, self._first = 0, self._count_of(timestep), timestep
        else:
            self.index += 1
        self.count, self._last = max(self.count, self.index + 1), timestep


def timestep_of(bound: Mapping[str, Any]) -> float:
    """One number for the timesteps of a network's call: their mean.

    A call may have a timestep for each image, frame or token. The first is no measure of the run, because clean tokens (a
    given first frame) keep theirs. The mean changes whenever any of them does, and in the same direction. Equal numbers have
    exactly their own value as the mean, however many rows a call has.

    Args:
        bound: the call's arguments by name.

    Raises:
        ValueError: there is no timestep among them.
    """
    for name in ("timestep", "t"):
        if bound.get(name) is not None:
            return float(torch.as_tensor(bound[name]).cpu().double().mean())
    raise ValueError("the network was called without a timestep, so it is unknown which denoising step this is")


def steps_of(pipe: Any, arguments: Mapping[str, Any]) -> Count:
    """How to count the steps of a pipeline's runs.

    A run may have fewer steps than ``num_inference_steps`` (``strength``, ``denoising_end``, ``timesteps``). So the steps are
    counted in the scheduler's own list, which is complete at the first call.

    Args:
        pipe: of diffusers.
        arguments: of the pipeline's call, defaults included.
    """
    return partial(_scheduled, pipe, int(arguments.get("num_inference_steps") or 1))


def _scheduled(pipe: Any, asked: int, first: float) -> int:
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, Tensor) or timesteps.ndim != 1 or not len(timesteps):
        return asked
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:  # pipelines that do not tell their scheduler give its own numbers to the network
        places = (timesteps.cpu().double() == first).nonzero().flatten()
        begin = int(places[0]) if len(places) else 0
    own = timesteps[begin:]
    looped = getattr(pipe, "_num_timesteps", None)
    own = own[: int(looped)] if looped else own
    # Schedulers of second order have some timesteps twice.
    return 1 + int((own[1:] != own[:-1]).sum()) if len(own) else asked


def call_arguments(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call by name, defaults included."""
    bound = inspect.signature(pipe.__call__).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
