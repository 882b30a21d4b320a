"""Optimizer steps on the adapter, with accumulation and averaging over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .context import RunContext
from .reward_mix import learning_rate

Loss = Callable[[Tensor], tuple[Tensor, dict[str, float]]]
"""Rows int64[B] of the data -> the mean loss over them, and figures by name."""


class TrainingCollapsed(RuntimeError):
    """Training has failed: a number is not finite, or a stop rule of the configuration fired."""


class AdapterOptimizer:
    """AdamW on the adapter's parameters."""

    def __init__(self, context: RunContext) -> None:
        self.context, config = context, context.config.optimizer
        self.parameters = list(context.model.trainable().values())
        adam = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizer = context.processes.accelerator.prepare(adam)

    @property
    def rows_per_step(self) -> int:
        """Rows of data in one optimizer step, over all processes."""
        config = self.context.config
        return config.sampling.batch * config.optimizer.accumulate * self.context.processes.count

    def step(self, rows: Tensor, loss_of: Loss) -> dict[str, float]:
        """Make one optimizer step.

        Args:
            rows: of the data, int64[rows_per_step], the same on every process.
            loss_of: the loss of one network batch of them.

        Returns:
            The figures of the loss, ``policy_loss`` and ``gradient_norm``, averaged over batches and processes.

        Raises:
            TrainingCollapsed: the loss or the gradient is not finite.
        """
        processes, config = self.context.processes, self.context.config
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.context.reward_mix.iteration)
        own = rows.view(processes.count, config.optimizer.accumulate, config.sampling.batch)[processes.rank]
        sums: dict[str, float] = {}
        for done, micro in enumerate(own, 1):
            loss, figures = loss_of(micro)
            processes.accelerator.backward(loss / len(own))
            figures["policy_loss"] = float(loss.detach())
            sums = {name: sums.get(name, 0.0) + figure / len(own) for name, figure in figures.items()}
            self.context.progress.step("update", done, len(own))
        means = processes.mean(sums)
        if not math.isfinite(means["policy_loss"]):
            raise TrainingCollapsed(f"the policy loss is {means['policy_loss']}")
        return {**means, "gradient_norm": self._apply()}

    def _apply(self) -> float:
        """Average and clip the gradients and apply them; returns their norm."""
        processes = self.context.processes
        processes.average_gradients(self.parameters)
        norm = processes.accelerator.clip_grad_norm_(self.parameters, self.context.config.optimizer.clip_norm)
        gradient_norm = float(norm) if norm is not None else 0.0
        # With fp16 the loss scaler skips a step whose gradient overflowed and lowers its scale: that is no failure.
        if not math.isfinite(gradient_norm) and processes.accelerator.scaler is None:
            raise TrainingCollapsed(f"the gradient's norm is {gradient_norm}")
        self.optimizer.step()
        return gradient_norm

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer and, with fp16, of the loss scaler."""
        scaler = self.context.processes.accelerator.scaler
        return {
            "policy_optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved["policy_optimizer"])
        scaler = self.context.processes.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict(saved["scaler"])


def mean_figures(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure over several optimizer steps."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
