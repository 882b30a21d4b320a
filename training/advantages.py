"""What the other images of a prompt say of an image's reward: DDPO's statistics, and expected scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


class PromptMeans:
    """The mean scores of every prompt's images, as part of a baseline.

    ``m_i = (sum_j r_j + mean) / (n + 1)`` over the n remembered images j of the prompt, and the mean of all images of late: a
    prompt that is new has the mean of all, and one that was seen often has its own. Where scores differ more between prompts than
    within them, the prompt's mean is most of an advantage's noise.
    """

    def __init__(self, window: int) -> None:
        """Remember up to ``window`` images of each prompt, and as many (or one iteration's) of all together."""
        self.window = window
        self.of_prompt: dict[str, dict[str, list[float]]] = {}
        """Reward -> prompt -> scores."""
        self.latest: dict[str, list[float]] = {}
        """Reward -> scores of any prompt."""

    def update(self, prompts: Sequence[str], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take in an iteration's scores, and return what the other images make one expect of each.

        An image's own score is left out, so an advantage with this baseline stays unbiased.

        Args:
            prompts: one per image.
            scores: by reward name, float64[B].

        Returns:
            By reward name, float64[B], the scores' units. The only image there ever was is expected to score what it scores.
        """
        return {name: self._update(name, prompts, values.tolist()) for name, values in scores.items()}

    def _update(self, name: str, prompts: Sequence[str], values: Sequence[float]) -> Tensor:
        known, latest = self.of_prompt.setdefault(name, {}), [*self.latest.get(name, []), *values]
        for prompt, value in zip(prompts, values, strict=True):
            known.setdefault(prompt, []).append(value)
        expected = []
        for prompt, value in zip(prompts, values, strict=True):
            mean = (sum(latest) - value) / (len(latest) - 1) if len(latest) > 1 else value
            expected.append((sum(known[prompt]) - value + mean) / len(known[prompt]))
        for prompt in set(prompts):
            known[prompt] = known[prompt][-self.window :]
        self.latest[name] = latest[-max(self.window, len(values)) :]
        return torch.tensor(expected, dtype=torch.float64)

    def expected(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is expected of further images, as `update` returns it."""
        return {name: self._expected(name, prompts) for name in self.of_prompt}

    def _expected(self, name: str, prompts: Sequence[str]) -> Tensor:
        latest, known = self.latest[name], self.of_prompt[name]
        mean = sum(latest) / len(latest)
        means = {prompt: (sum(own) + mean) / (len(own) + 1) for prompt, own in known.items()}
        return torch.tensor([means.get(prompt, mean) for prompt in prompts], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, for a checkpoint."""
        return {"of_prompt": self.of_prompt, "latest": self.latest}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.of_prompt, self.latest = saved["of_prompt"], saved["latest"]
