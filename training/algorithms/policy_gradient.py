"""Gradient steps of the policy and of the value function."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from ..buffer import Transitions
from ..collection import PromptTable
from ..config import AlgorithmConfig, OptimizerConfig, ValueConfig
from ..ddim import DdimSteps, gaussian_kl, gaussian_log_prob, step_mean, step_std
from ..models.protocol import TextToImageModel, predict_guided
from ..objectives import clip_fraction, importance_ratio, policy_loss
from ..processes import Processes
from ..randomness import keyed_generator
from ..value import ValueFunction


class TrainingCollapsed(RuntimeError):
    """Training went off: a number is not finite, or a stop rule of the configuration fired."""


class PolicyUpdater:
    """Optimiser steps on the adapter from recorded denoising steps."""

    def __init__(
        self,
        model: TextToImageModel,
        steps: DdimSteps,
        table: PromptTable,
        guidance_scale: float,
        algorithm: AlgorithmConfig,
        config: OptimizerConfig,
        batch: int,
        processes: Processes,
    ) -> None:
        self.model, self.steps, self.table, self.guidance_scale = model, steps, table, guidance_scale
        self.algorithm, self.config, self.batch, self.processes = algorithm, config, batch, processes
        self.parameters = list(model.trainable().values())
        accelerator: Accelerator = processes.accelerator
        self.optimizer = accelerator.prepare(
            torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        )

    @property
    def transitions_per_step(self) -> int:
        """Denoising steps in one optimiser step, over all processes."""
        return self.batch * self.config.accumulate * self.processes.count

    def minibatches(self, buffered: int, fresh: int, seed: int, iteration: int) -> Iterator[Tensor]:
        """Rows of the buffer for each optimiser step, int64[transitions_per_step], the same on every process.

        DPOK draws from the whole buffer, anew for every step; DDPO goes through the fresh rows once per epoch.
        """
        size = self.transitions_per_step
        if self.algorithm.name == "dpok":
            for update in range(self.algorithm.updates):
                yield torch.randperm(buffered, generator=keyed_generator(seed, "policy", iteration, update))[:size]
            return
        for epoch in range(self.algorithm.epochs):
            order = torch.randperm(fresh, generator=keyed_generator(seed, "policy", iteration, epoch))
            yield from (buffered - fresh + order).split(size)

    def step(self, buffer: Transitions, rows: Tensor, value: ValueFunction | None) -> dict[str, float]:
        """One optimiser step; returns ratio deviation, clip fraction, KL per step (nats) and gradient norm.

        Raises:
            TrainingCollapsed: the loss or the gradient is not finite.
        """
        self.optimizer.zero_grad()
        own = rows.view(self.processes.count, self.config.accumulate, self.batch)[self.processes.rank]
        sums: dict[str, float] = {}
        for micro in own:
            loss, figures = self._loss(buffer[micro], value)
            self.processes.accelerator.backward(loss / len(own))
            figures["policy_loss"] = float(loss.detach())
            sums = {name: sums.get(name, 0.0) + figure / len(own) for name, figure in figures.items()}
        means = self.processes.mean(sums)
        if not math.isfinite(means["policy_loss"]):
            raise TrainingCollapsed(f"the policy loss is {means['policy_loss']}")
        self.processes.average_gradients(self.parameters)
        norm = self.processes.accelerator.clip_grad_norm_(self.parameters, self.config.clip_norm)
        gradient_norm = float(norm) if norm is not None else 0.0
        # With fp16 the loss scaler skips a step whose gradient overflowed and lowers its scale: that is no collapse.
        if not math.isfinite(gradient_norm) and self.processes.accelerator.scaler is None:
            raise TrainingCollapsed(f"the gradient's norm is {gradient_norm}")
        self.optimizer.step()
        return {**means, "gradient_norm": gradient_norm}

    def _loss(self, batch: Transitions, value: ValueFunction | None) -> tuple[Tensor, dict[str, float]]:
        device = self.model.device
        latents, conditioning = batch.latents.to(device), self.table.conditioning(batch.prompt).to(device)
        timesteps = self.steps.timesteps[batch.step].to(device)
        std = step_std(self.steps, batch.step, latents)
        with_kl = self.algorithm.name == "dpok"
        # The base goes first: in the adapter's pass nothing may be switched between forward and backward, because
        # gradient checkpointing runs the forward again.
        base_mean = None
        if with_kl:
            with torch.no_grad():
                base = predict_guided(self.model, latents, timesteps, conditioning, self.guidance_scale, base=True)
                base_mean = step_mean(self.steps, batch.step, latents, base)
        output = predict_guided(self.model, latents, timesteps, conditioning, self.guidance_scale, base=False)
        mean = step_mean(self.steps, batch.step, latents, output)
        log_prob = gaussian_log_prob(batch.next_latents.to(device), mean, std)
        ratio = importance_ratio(log_prob, batch.log_prob.to(device))
        advantage = batch.returns.to(device)
        if value is not None:
            with torch.no_grad():
                advantage = advantage - value(latents, timesteps, conditioning.features)
        loss = policy_loss(ratio, advantage, self.algorithm.clip_range, self.algorithm.clip).mean()
        figures = {
            "ratio_deviation": float((ratio.detach() - 1).abs().mean()),
            "clip_fraction": float(clip_fraction(ratio.detach(), self.algorithm.clip_range)),
        }
        if base_mean is not None:
            kl = gaussian_kl(mean, base_mean, std).mean()
            loss = loss + self.algorithm.kl_weight * kl
            figures["step_kl"] = float(kl.detach())
        return loss, figures


class ValueUpdater:
    """Regression of the value function onto the buffer's returns."""

    def __init__(
        self,
        value: ValueFunction,
        steps: DdimSteps,
        table: PromptTable,
        config: ValueConfig,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.value, self.steps, self.table = value.to(device), steps, table
        self.config, self.processes, self.device = config, processes, device
        self.optimizer = torch.optim.AdamW(value.parameters(), lr=config.learning_rate)

    def fit(self, buffer: Transitions, seed: int, iteration: int) -> float:
        """Make the iteration's value updates; returns the mean squared error of the last, reward units squared."""
        self.value.scale_to(buffer.returns)
        error = 0.0
        for update in range(self.config.updates):
            order = torch.randperm(len(buffer), generator=keyed_generator(seed, "value", iteration, update))
            rows = order[: self.config.batch * self.processes.count].chunk(self.processes.count)[self.processes.rank]
            batch = buffer[rows]
            predicted = self.value(
                batch.latents.to(self.device),
                self.steps.timesteps[batch.step].to(self.device),
                self.table.conditioning(batch.prompt).features.to(self.device),
            )
            residual = (predicted - batch.returns.to(self.device, torch.float32)) / self.value.return_std
            loss = (
                residual.square().mean()
            )  # in units of the returns' spread, so that the learning rate fits any reward
            self.optimizer.zero_grad()
            loss.backward()
            self.processes.average_gradients(self.value.parameters())
            self.optimizer.step()
            error = float(loss.detach()) * float(self.value.return_std) ** 2
        return self.processes.mean({"value_loss": error})["value_loss"]
