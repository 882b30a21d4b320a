"""GRPO: a policy gradient on groups of images of one prompt, without a value function.

Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818), with the exact KL of every step. With
``sampling.window_steps`` the noisy steps are a short window that is drawn anew (MixGRPO, arXiv 2507.21802).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..adapter_optimizer import AdapterOptimizer
from ..buffer import Transitions, denoising_steps
from ..collection import Collection, Collector
from ..context import RunContext
from ..policy import gaussian_kl
from .policy_gradient import clipped_loss, pass_over, recorded_step, total_reward
from .requirements import check_passes


def group_advantages(scores: Mapping[str, Tensor], weights: Mapping[str, float], group: int) -> Tensor:
    """Advantages of images within their group, each reward normalized before the rewards are weighted.

    ``A_i = sum_k w_k (r_ki - mean_group r_k) / (std_group r_k + 1e-6)`` (Flow-GRPO, arXiv 2505.05470, eq. 4, for each reward).

    Args:
        scores: by reward name, float64[N], the images of a group side by side.
        weights: by reward name.
        group: images in a group.

    Returns:
        float64[N], standard deviations.
    """
    total = torch.zeros(1, dtype=torch.float64)
    for name, weight in weights.items():
        grouped = scores[name].view(-1, group)
        centered = grouped - grouped.mean(1, keepdim=True)
        total = total + weight * (centered / (grouped.std(1, keepdim=True, correction=0) + 1e-6)).flatten()
    return total


def bounded_advantages(context: RunContext, data: Collection, largest: float) -> Tensor:
    """The advantages of an iteration's images within their groups, none larger than ``largest``, float64[N].

    Where the adapters are trained to be stacked the bound is put on each reward's advantage before they are weighted by the
    preference w. The loss is linear in the advantage, so it is the sum of a loss for each reward, weighted by w, as in
    ParetoSlider (arXiv 2604.20816).
    """
    group = context.config.algorithm.group
    weights = context.reward_mix.weights
    preferences = context.preferences(data.prompt)
    if preferences is None:
        return group_advantages(data.scores, weights, group).clamp(-largest, largest)
    bounded = [group_advantages(data.scores, {name: weights[name]}, group).clamp(-largest, largest) for name in weights]
    return (preferences * torch.stack(bounded, dim=1)).sum(1)


class Grpo:
    """Maximizes the advantage within groups, minus ``kl_weight`` times the KL, by clipped steps over each iteration's data."""

    has_kl_penalty: ClassVar[bool] = False  # its unit is standard deviations per nat, not reward units
    needs_reward_gradient: ClassVar[bool] = False

    def __init__(self, context: RunContext) -> None:
        self.context, algorithm = context, context.config.algorithm
        self.collector = Collector(context, images_per_prompt=algorithm.group)
        self.optimizer = AdapterOptimizer(context)
        self.measures_kl = algorithm.kl_weight > 0
        fresh = context.images_per_iteration * len(context.sampling_steps(0).noisy)
        check_passes("grpo", "denoising steps", fresh, self.optimizer.rows_per_step)

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`."""
        context, algorithm = self.context, self.context.config.algorithm
        data = self.collector.from_policy(iteration, measure_kl=self.measures_kl)
        _, figures = total_reward(context, data)
        advantage = bounded_advantages(context, data, algorithm.advantage_clip)
        steps = context.sampling_steps(iteration)
        fresh = denoising_steps(data, advantage[:, None].expand(-1, len(steps)), steps)
        if self.measures_kl:
            figures["kl"] = float(data.kl.sum(1).mean())
        return pass_over(context, self.optimizer, fresh, iteration, self._loss) | figures

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        mean, std = recorded_step(self.context, batch, base=False)
        loss, figures = clipped_loss(self.context, batch, mean, std, batch.returns.to(self.context.exact_device))
        if not self.measures_kl:
            return loss, figures
        kl = gaussian_kl(mean, batch.base_mean.to(mean), std).mean()
        return loss + self.context.config.algorithm.kl_weight * kl, figures

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
