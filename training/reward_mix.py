"""The trained reward: the weights of its terms over the iterations, and the terms' normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig


class RewardMix:
    """A weighted sum of rewards.

    The weights move linearly from ``rewards`` to ``rewards_end``. With ``normalise_rewards`` a term is
    ``(r - mean) / std`` over all images of the run so far.

    Args:
        config: the settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.iteration = 0
        self.moments: dict[str, list[float]] = {}
        """Reward -> count, mean, sum of squared distances from the mean."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights of this iteration."""
        config = self.config
        share = min(1.0, self.iteration / config.rewards_end_iteration) if config.rewards_end_iteration else 1.0
        ends = {**config.rewards, **config.rewards_end}
        return {name: (1 - share) * weight + share * ends[name] for name, weight in config.rewards.items()}

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Take an iteration's scores of all processes into the running statistics (Chan et al. 1983, eq. 2.1).

        Args:
            scores: by reward name, float64[N].
        """
        for name, values in scores.items() if self.config.normalise_rewards else ():
            count, mean, spread = self.moments.get(name, [0.0, 0.0, 0.0])
            new, own = float(len(values)), float(values.mean())
            total = count + new
            spread += float((values - own).square().sum()) + (own - mean) ** 2 * count * new / total
            self.moments[name] = [total, mean + (own - mean) * new / total, spread]

    def terms(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The terms of the trained reward by name, float64[N], with the scores' gradient."""
        if not self.config.normalise_rewards:
            return scores
        return {name: self._normalized(name, values) for name, values in scores.items()}

    def _normalized(self, name: str, values: Tensor) -> Tensor:
        count, mean, spread = self.moments[name]
        return (values - mean) / ((spread / count) ** 0.5 + 1e-6)

    def state_dict(self) -> dict[str, Any]:
        """The running statistics, for a checkpoint."""
        return {name: list(moments) for name, moments in self.moments.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.moments = {name: list(moments) for name, moments in saved.items()}


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """The learning rate of an iteration: a linear warm-up times a constant, linear or cosine schedule.

    Args:
        config: the settings.
        iteration: from 0.
    """
    optimizer = config.optimizer
    warm = min(1.0, (iteration + 1) / optimizer.warmup) if optimizer.warmup else 1.0
    if optimizer.schedule == "constant":
        return optimizer.learning_rate * warm
    share = min(1.0, iteration / optimizer.decay_iterations)
    fall = 1 - share if optimizer.schedule == "linear" else float((1 + torch.cos(torch.tensor(share * torch.pi))) / 2)
    return optimizer.learning_rate * warm * fall
