"""DPOK: a policy gradient with a KL penalty to the base, a learned baseline and a replay buffer.

Fan et al. 2023, arXiv 2305.16381, with the exact return of later KLs (Diffusion Blend, arXiv 2505.18547, eq. 4).
The baseline is the mean of the prompt's other images plus DPOK's value function, which is fitted to what that mean leaves. A
value function alone takes many iterations to find the differences between prompts, and until then they are in every advantage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..adapter_optimizer import AdapterOptimizer, mean_figures
from ..advantages import PromptMeans
from ..buffer import Transitions, denoising_steps, join
from ..collection import Collector
from ..context import RunContext
from ..objectives import returns_to_go
from ..policy import gaussian_kl
from ..randomness import keyed_generator
from ..value import ValueRegression
from .policy_gradient import (
    buffer_state,
    check_fresh_ratio,
    clipped_loss,
    recorded_step,
    restored_buffer,
    total_reward,
    with_base_means,
)


class Dpok:
    """Maximizes ``E[r(x_0)] - alpha sum_t KL_t`` by clipped policy-gradient steps on a replay buffer."""

    has_kl_penalty: ClassVar[bool] = True
    needs_reward_gradient: ClassVar[bool] = False

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.collector = Collector(context)
        self.optimizer = AdapterOptimizer(context)
        self.value = ValueRegression(context)
        self.prompt_means = PromptMeans(context.config.algorithm.statistics_window)
        self.buffer: Transitions | None = None

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`."""
        context, settings = self.context, self.context.config.algorithm
        data = self.collector.from_policy(iteration, measure_kl=settings.kl_in_return)
        reward, figures = total_reward(context, data)
        returns = returns_to_go(reward, data.kl, settings.kl_weight)
        fresh = denoising_steps(data, returns, context.sampling_steps(iteration))
        expected = self._reward(self.prompt_means.update(context.prompts.texts(data.prompt), data.scores), data.prompt)
        fresh = self.value.with_baseline(fresh, expected.repeat_interleave(len(fresh) // len(expected)))
        self.buffer = join(self.buffer, fresh, settings.buffer * context.processes.count)
        figures |= self._update(self.buffer, iteration, only_fresh=len(self.buffer) == len(fresh))
        # After the update: a value function that has seen a return explains it, and takes it out of the advantage.
        figures["value_loss"] = self.value.fit(self.buffer, self._expected(self.buffer), iteration)
        if settings.kl_in_return:
            figures["kl"] = float(data.kl.sum(1).mean())
        return figures

    def _update(self, buffer: Transitions, iteration: int, *, only_fresh: bool) -> dict[str, float]:
        """Make the iteration's optimizer steps, each on rows drawn anew from the whole buffer."""
        rows = []
        for update in range(self.context.config.algorithm.updates):
            generator = keyed_generator(self.context.seed, "policy", iteration, update)
            drawn = torch.randperm(len(buffer), generator=generator)[: self.optimizer.rows_per_step]
            rows.append(self.optimizer.step(drawn, lambda micro: self._loss(buffer[micro])))
            if only_fresh and len(rows) == 1:
                check_fresh_ratio(self.context, rows[0]["ratio_deviation"])
        figures = mean_figures(rows)
        # The KL of one step; the steps are drawn evenly, so their number times it is the trajectory's.
        figures["kl"] = figures.pop("step_kl") * len(self.context.sampling_steps(iteration).noisy)
        return figures

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        """The clipped policy loss plus the KL penalty."""
        # The base goes first: gradient checkpointing runs the adapter's forward pass again, so nothing may be switched
        # between its forward and backward pass.
        base_mean = batch.base_mean.to(self.context.device)
        if base_mean.shape[1] == 0:  # with kl_in_return the sampler has measured the base already
            base_mean, _ = recorded_step(self.context, batch, base=True)
        mean, std = recorded_step(self.context, batch, base=False)
        advantage = (batch.returns - batch.baseline).to(self.context.exact_device)
        loss, figures = clipped_loss(self.context, batch, mean, std, advantage)
        kl = gaussian_kl(mean, base_mean, std).mean()
        return loss + self.context.config.algorithm.kl_weight * kl, {**figures, "step_kl": float(kl.detach())}

    def _expected(self, steps: Transitions) -> Tensor:
        """The reward that is expected of images of the steps' prompts, float64[N]."""
        return self._reward(self.prompt_means.expected(self.context.prompts.texts(steps.prompt)), steps.prompt)

    def _reward(self, scores: Mapping[str, Tensor], prompt: Tensor) -> Tensor:
        """The trained reward of expected scores, which is the expected trained reward, because it is linear in the scores."""
        return self.context.trained_reward(scores, prompt).double()

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        means = {"prompt_means": self.prompt_means.state_dict()}
        return {**self.optimizer.state_dict(), **self.value.state_dict(), "buffer": buffer_state(self.buffer), **means}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
        self.value.load_state_dict(saved)
        self.buffer = restored_buffer(saved["buffer"])
        if self.buffer is not None and bool(self.buffer.baseline.isnan().any()):
            self.buffer = self.value.with_baseline(self.buffer, torch.zeros_like(self.buffer.returns))
        if "prompt_means" in saved:
            self.prompt_means.load_state_dict(saved["prompt_means"])
        else:  # an earlier version's value function expects whole returns
            self.value = ValueRegression(self.context)
        recorded = self.context.config.algorithm.kl_in_return
        if recorded and self.buffer is not None and self.buffer.base_mean.shape[1] == 0:
            self.buffer = with_base_means(self.context, self.buffer)
