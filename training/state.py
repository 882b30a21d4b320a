"""Everything that a resumed run must find as it was."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .advantages import PromptStatistics
from .algorithms.policy_gradient import PolicyUpdater, ValueUpdater
from .buffer import Transitions
from .models.protocol import TextToImageModel


@dataclass
class TrainState:
    """The moving parts of a run.

    Attributes:
        iteration: iterations completed.
        buffer: recorded denoising steps, or nothing yet.
        statistics: per-prompt rewards (ddpo).
        first_diversity: how much images differed at first; None before the first iteration.
        history: one row of figures per iteration.
        watched: one row of figures per look at the held-out rewards.
    """

    statistics: PromptStatistics
    iteration: int = 0
    buffer: Transitions | None = None
    first_diversity: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    watched: list[dict[str, float]] = field(default_factory=list)


def adapter_copy(model: TextToImageModel) -> dict[str, Tensor]:
    """A copy of the trained parameters on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.trainable().items()}


def restore_adapter(model: TextToImageModel, parameters: dict[str, Tensor]) -> None:
    """Put trained parameters back, by name."""
    with torch.no_grad():
        for name, value in model.trainable().items():
            value.copy_(parameters[name])


def to_dict(state: TrainState, model: TextToImageModel, policy: PolicyUpdater, value: ValueUpdater) -> dict[str, Any]:
    """The run as tensors, numbers, strings and plain containers."""
    scaler = policy.processes.accelerator.scaler
    return {
        "iteration": state.iteration,
        "adapter": adapter_copy(model),
        "policy_optimizer": policy.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "value": value.value.state_dict(),
        "value_optimizer": value.optimizer.state_dict(),
        "buffer": state.buffer.tensors() if state.buffer is not None else {},
        "statistics": state.statistics.rewards,
        "first_diversity": state.first_diversity,
        "history": state.history,
        "watched": state.watched,
        "random": _random_state(),
    }


def from_dict(
    saved: dict[str, Any], state: TrainState, model: TextToImageModel, policy: PolicyUpdater, value: ValueUpdater
) -> None:
    """Bring a fresh run to where the saved one was."""
    restore_adapter(model, saved["adapter"])
    policy.optimizer.load_state_dict(saved["policy_optimizer"])
    if policy.processes.accelerator.scaler is not None:
        policy.processes.accelerator.scaler.load_state_dict(saved["scaler"])
    value.value.load_state_dict(saved["value"])
    value.optimizer.load_state_dict(saved["value_optimizer"])
    state.iteration = saved["iteration"]
    state.buffer = Transitions(**saved["buffer"]) if saved["buffer"] else None
    state.statistics.rewards = saved["statistics"]
    state.first_diversity = saved["first_diversity"]
    state.history, state.watched = saved["history"], saved["watched"]
    _restore_random_state(saved["random"])


def _random_state() -> dict[str, Any]:
    """The global generators: the trainer itself keys its own, but a reward of one's own may use these."""
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
