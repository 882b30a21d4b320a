"""The state of a run that a checkpoint stores, beside the state of the algorithm.

accelerate stores the states of random generators by pickle, which this project does not read. `random_state` therefore
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
from accelerate.utils import set_seed
from torch import Tensor

from .models.protocol import TextToImageModel
from .randomness import keyed_generator


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
        "random": random_state(),
    }


def from_dict(saved: dict[str, Any], state: TrainState, model: TextToImageModel) -> None:
    """Restore `to_dict`, except the random generators, which `restore_random_state` restores."""
    restore_adapter(model, saved["adapter"])
    state.iteration = saved["iteration"]
    state.first_diversity = saved["first_diversity"]
    state.history, state.watched = saved["history"], saved["watched"]
    state.average = saved.get("average") or None


def random_state() -> dict[str, Any]:
    """The states of this process's global generators. The trainer does not use them, but a user's own reward may."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]],
    }


def restore_random_state(saved: dict[str, Any], rank: int) -> None:
    """Restore the global generators of a process.

    Args:
        saved: a checkpoint's state: ``random`` of the first process and ``random_of_others``, a list. Checkpoints of older
            versions lack the list. The other processes then get a new seed each, so that no two of them draw alike.
        rank: of the process.
    """
    others = saved.get("random_of_others", [])
    if rank == 0:
        _restore_generators(saved["random"])
    elif rank <= len(others):
        _restore_generators(others[rank - 1])
    else:
        seed = saved["config"]["run"]["seed"]
        set_seed(keyed_generator(seed, "resumed", saved["iteration"], rank).initial_seed() % 2**32)  # numpy's largest


def _restore_generators(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available():
        # The run may have begun with more visible GPUs than there are now.
        for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    key, position, has_gauss, numpy_gauss = saved["numpy"]
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, has_gauss, numpy_gauss))
