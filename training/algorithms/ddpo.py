"""DDPO: a policy gradient on fresh data, with advantages normalized per prompt and no KL penalty.

Black et al. 2024, arXiv 2305.13301.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..adapter_optimizer import AdapterOptimizer
from ..advantages import PromptStatistics
from ..buffer import Transitions, denoising_steps
from ..collection import Collection, Collector
from ..context import RunContext
from .policy_gradient import clipped_loss, pass_over, recorded_step, total_reward
from .requirements import check_passes


class Ddpo:
    """Maximizes ``E[r(x_0)]`` by passes of clipped policy-gradient steps over each iteration's data."""

    has_kl_penalty: ClassVar[bool] = False
    needs_reward_gradient: ClassVar[bool] = False

    def __init__(self, context: RunContext) -> None:
        self.context, settings = context, context.config.algorithm
        self.collector = Collector(context)
        self.optimizer = AdapterOptimizer(context)
        self.statistics = PromptStatistics(settings.statistics_window, settings.statistics_minimum)
        fresh = context.images_per_iteration * len(context.sampling_steps(0).noisy)
        check_passes("ddpo", "denoising steps", fresh, self.optimizer.rows_per_step)

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`."""
        data = self.collector.from_policy(iteration, measure_kl=False)
        reward, figures = total_reward(self.context, data)
        advantage = self._advantage(data, reward)[:, None].expand(-1, len(self.context.steps))
        fresh = denoising_steps(data, advantage, self.context.sampling_steps(iteration))
        return figures | pass_over(self.context, self.optimizer, fresh, iteration, self._loss)

    def _advantage(self, data: Collection, reward: Tensor) -> Tensor:
        """The clipped advantage of every image, float64[N], standard deviations."""
        largest = self.context.config.algorithm.advantage_clip
        prompts = self.context.prompts.texts(data.prompt)
        return self.statistics.update(prompts, reward).clamp(-largest, largest)

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        mean, std = recorded_step(self.context, batch, base=False)
        return clipped_loss(self.context, batch, mean, std, batch.returns.to(self.context.exact_device))

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return {**self.optimizer.state_dict(), "statistics": self.statistics.rewards}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
        self.statistics.rewards = saved["statistics"]
