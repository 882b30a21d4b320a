"""Advantages of DDPO: rewards normalized by the statistics of their prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PromptStatistics:
    """The last rewards of every prompt (Black et al. 2024, DDPO, arXiv 2305.13301, section 5.3)."""

    def __init__(self, window: int, minimum: int) -> None:
        """Remember up to ``window`` rewards per prompt; below ``minimum`` the whole batch's statistics are used."""
        self.window = window
        self.minimum = minimum
        self.rewards: dict[str, list[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Take in rewards and normalise them.

        ``A = (r - mean_prompt) / (std_prompt + 1e-6)``.

        Args:
            prompts: one per reward.
            rewards: float64[B].

        Returns:
            Advantages, float64[B], in standard deviations.
        """
        for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
            self.rewards[prompt] = [*self.rewards.get(prompt, []), reward][-self.window :]
        return torch.stack(
            [self._normalise(prompt, reward, rewards) for prompt, reward in zip(prompts, rewards, strict=True)]
        )

    def _normalise(self, prompt: str, reward: Tensor, batch: Tensor) -> Tensor:
        seen = torch.tensor(self.rewards[prompt], dtype=batch.dtype)
        known = seen if len(seen) >= self.minimum else batch
        return (reward - known.mean()) / (known.std(correction=0) + 1e-6)
