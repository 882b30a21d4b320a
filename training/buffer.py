"""The replay buffer: single denoising steps of recent trajectories, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """Denoising steps, one row each.

    Attributes:
        latents: state before the step, float32[N, C, H, W].
        next_latents: state after it, same shape.
        step: which of the sampler's steps, int64[N].
        prompt: row in the run's list of prompts, int64[N].
        log_prob: under the policy that took it, float64[N], nats.
        returns: what the step earned (DPOK) or its advantage (DDPO), float64[N].
    """

    latents: Tensor
    next_latents: Tensor
    step: Tensor
    prompt: Tensor
    log_prob: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        return Transitions(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join(older: Transitions | None, newer: Transitions, capacity: int) -> Transitions:
    """Append the newer steps and keep the newest ``capacity`` of all.

    Args:
        older: what the buffer held, or nothing.
        newer: fresh steps.
        capacity: rows to keep.

    Returns:
        The buffer's new content, oldest first.

    Raises:
        ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"buffer capacity {capacity}: it must hold at least one transition")
    if older is None:
        return newer[slice(-capacity, None)]
    columns = {name: torch.cat([old, newer.tensors()[name]])[-capacity:] for name, old in older.tensors().items()}
    return Transitions(**columns)
