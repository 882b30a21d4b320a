"""The state of a run that a checkpoint stores, beside the state of the algorithm.

accelerate stores the states of random generators by pickle, which this project does not read. `_random_state` therefore
turns them into tensors and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .models.protocol import TextToImageModel


@dataclass
class TrainState:
    """The progress of a run.

    Attributes:
        iteration: iterations completed.
        first_diversity: the images' diversity in the first iteration; None before it.
        history: one row of figures per iteration.
        watched: one row of figures per evaluation of the held-out rewards.
        average: the adapter's exponential moving average over the iterations; None without ``run.ema``.
    """

    iteration: int = 0
    first_diversity: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    watched: list[dict[str, float]] = field(default_factory=list)
    average: dict[str, Tensor] | None = None


def adapter_copy(model: TextToImageModel) -> dict[str, Tensor]:
    """Copy the trained parameters to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.trainable().items()}


def restore_adapter(model: TextToImageModel, parameters: dict[str, Tensor]) -> None:
    """Restore trained parameters by name."""
    with torch.no_grad():
        for name, value in model.trainable().items():
            value.copy_(parameters[name])


@contextmanager
def averaged(state: TrainState, model: TextToImageModel) -> Iterator[None]:
    """Use the averaged adapter inside the block, if there is one."""
    if state.average is None:
        yield
        return
    trained = adapter_copy(model)
    restore_adapter(model, state.average)
    try:
        yield
    finally:
        restore_adapter(model, trained)


def to_dict(state: TrainState, model: TextToImageModel) -> dict[str, Any]:
    """The adapter, the progress and the global random generators, as tensors, numbers, strings and containers of them."""
    return {
        "iteration": state.iteration,
        "adapter": adapter_copy(model),
        "first_diversity": state.first_diversity,
        "history": state.history,
        "watched": state.watched,
        "average": state.average or {},
        "random": _random_state(),
    }


def from_dict(saved: dict[str, Any], state: TrainState, model: TextToImageModel) -> None:
    """Restore `to_dict`."""
    restore_adapter(model, saved["adapter"])
    state.iteration = saved["iteration"]
    state.first_diversity = saved["first_diversity"]
    state.history, state.watched = saved["history"], saved["watched"]
    state.average = saved.get("average") or None
    _restore_random_state(saved["random"])


def _random_state() -> dict[str, Any]:
    """The global generators. The trainer does not use them, but a user's own reward may."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]],
    }


def _restore_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    key, position, has_gauss, numpy_gauss = saved["numpy"]
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, has_gauss, numpy_gauss))
