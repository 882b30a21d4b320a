"""The replay buffer: single denoising steps of recent trajectories, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .collection import Collection
from .policy import PolicySteps


@dataclass(frozen=True)
class Transitions:
    """Denoising steps, one row each.

    Attributes:
        latents: state before the step, float32[N, C, H, W].
        next_latents: state after it, same shape.
        step: which of the sampler's steps, int64[N].
        prompt: row in the run's list of prompts, int64[N].
        log_prob: under the policy that took it, float64[N], nats.
        returns: the step's return (dpok), its advantage (ddpo) or the image's reward (rwr), float64[N].
        base_mean: mean of the step under the base, as `latents`; float32[N, 0, H, W] where it was not measured.
        baseline: return that was expected in the state before the step's own return was seen, float64[N] (dpok; otherwise 0).
    """

    latents: Tensor
    next_latents: Tensor
    step: Tensor
    prompt: Tensor
    log_prob: Tensor
    returns: Tensor
    base_mean: Tensor
    baseline: Tensor

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        return Transitions(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join(older: Transitions | None, newer: Transitions, capacity: int) -> Transitions:
    """Append fresh rows to the buffer and drop the oldest beyond ``capacity``.

    Args:
        older: the buffer, or None.
        newer: fresh rows.
        capacity: the most rows that stay.

    Returns:
        The new buffer, oldest rows first.

    Raises:
        ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"buffer capacity {capacity}: it must hold at least one transition")
    if older is None:
        return newer[slice(-capacity, None)]
    columns = {name: torch.cat([old, newer.tensors()[name]])[-capacity:] for name, old in older.tensors().items()}
    return Transitions(**columns)


def denoising_steps(data: Collection, returns: Tensor, steps: PolicySteps) -> Transitions:
    """Cut trajectories into single denoising steps. Steps without noise are no actions and are left out.

    Args:
        data: trajectories, N of them.
        returns: of each step, float64[N, T].
        steps: the sampler's coefficients.

    Returns:
        N times the number of noisy steps, trajectory by trajectory.
    """
    noisy = steps.noisy
    chosen = returns[:, noisy].flatten()
    return Transitions(
        latents=data.latents[:, noisy].flatten(0, 1),  # [N, T, C, H, W] -> [N T, C, H, W]
        next_latents=data.latents[:, noisy + 1].flatten(0, 1),
        step=noisy.repeat(len(data.prompt)),
        prompt=data.prompt.repeat_interleave(len(noisy)),
        log_prob=data.log_prob[:, noisy].flatten(),
        returns=chosen,
        base_mean=_base_means(data, noisy),
        baseline=torch.zeros_like(chosen),
    )


def _base_means(data: Collection, noisy: Tensor) -> Tensor:
    if data.base_mean.shape[1] == 0:
        return data.latents[:, noisy, :0].flatten(0, 1)
    return data.base_mean[:, noisy].flatten(0, 1)


def clean_latents(data: Collection, reward: Tensor) -> Transitions:
    """The finished latents of trajectories and their rewards, for algorithms that do not use the steps between.

    Args:
        data: trajectories, N of them.
        reward: float64[N].
    """
    count = len(data.prompt)
    return Transitions(
        latents=data.latents[:, -1],
        next_latents=data.latents[:, -1, :0],
        step=torch.zeros(count, dtype=torch.int64),
        prompt=data.prompt,
        log_prob=torch.zeros(count, dtype=torch.float64),
        returns=reward,
        base_mean=data.latents[:, -1, :0],
        baseline=torch.zeros_like(reward),
    )
