"""Training of adapters that are made to be stacked: every image has its own preference, which is also its gates.

For m rewards there are m adapters. An image's preference w is drawn from the simplex, the layers compute
``y = W x + sum_i w_i B_i A_i x``, and the reward is ``r(w) = sum_i w_i s_i r_i`` with the weights s of the settings. Afterwards
the plain stacking of the m files at strengths w is the model for r(w), at one call a step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..rewards.catalogue import short_names
from .config import TrainConfig
from .models.protocol import GATES, Conditioning
from .prompt_table import Encoder, PromptTable
from .randomness import keyed_generator

CORNERS = 0.25
"""The share of images whose preference is a corner of the simplex."""


def draw_preference(rewards: int, generator: torch.Generator, corners: float = CORNERS) -> Tensor:
    """Draw a preference from the simplex.

    With probability ``corners`` it is a corner, each with equal probability. Otherwise a number of rewards from 2 to m and then
    a set of this size are drawn with equal probabilities, and the preference is uniform over the simplex of the set. So edges
    and faces are trained, too, for any m. For two rewards it is a corner or uniform on the line between them.

    Args:
        rewards: m, at least 2.
        generator: of the draws.
        corners: the share of corners; 1 trains each adapter for its reward alone.

    Returns:
        float64[m], at least 0, sum 1.
    """
    weights = torch.zeros(rewards, dtype=torch.float64)
    order = torch.randperm(rewards, generator=generator)
    if float(torch.rand(1, generator=generator)) < corners:
        weights[order[0]] = 1
        return weights
    size = int(torch.randint(2, rewards + 1, (1,), generator=generator))
    # The gaps between sorted uniform numbers are uniform over the simplex.
    cuts = torch.rand(size - 1, generator=generator, dtype=torch.float64).sort().values
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    weights[order[:size]] = torch.cat([ends[:1], cuts, ends[1:]]).diff()
    return weights


class StackedPrompts(PromptTable):
    """A table of prompts whose row numbers also say the preference: ``row = prompt + len(table) * number``.

    Number 0 is the preference of equal weights, numbers 1 to m are the corners, and each further number is a preference drawn
    by `draw_preference`, as a function of the seed and the number alone. A row without a number has equal weights.
    """

    def __init__(
        self,
        model: Encoder,
        prompts: Sequence[str],
        rewards: int,
        seed: int,
        *,
        negative: str = "",
        cache: str = "",
        corners: float = CORNERS,
    ) -> None:
        """Encode all prompts.

        Args:
            model: encodes prompts.
            prompts: one per row.
            rewards: m.
            seed: of the preferences.
            negative, cache: see `PromptTable`.
            corners: see `draw_preference`.
        """
        super().__init__(model, prompts, negative=negative, cache=cache)
        self.rewards, self.seed, self.corners = rewards, seed, corners

    def conditioning(self, rows: Tensor) -> Conditioning:
        """The conditioning of rows int64[B], with the gates, and with the preference among the features."""
        text, gates = self.encoded(rows), self.preferences(rows).float()
        return Conditioning(
            {**text.prompt, GATES: gates}, {**text.empty, GATES: gates}, torch.cat([text.features, gates], dim=1)
        )

    def shuffled_rows(self, seed: int, first: int, count: int) -> Tensor:
        """As `PromptTable.shuffled_rows`; every place of the list has a drawn preference of its own."""
        numbers = torch.arange(first, first + count)
        return self.with_drawn(super().shuffled_rows(seed, first, count), numbers)

    def with_drawn(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The rows' prompts with the drawn preferences of these numbers, counted from 0, int64[B]."""
        return self.plain(rows) + len(self) * (numbers + self.rewards + 1)

    def at_corner(self, rows: Tensor, reward: int) -> Tensor:
        """The rows' prompts with the preference for one reward alone, int64[B]."""
        return self.plain(rows) + len(self) * (reward + 1)

    def preferences(self, rows: Tensor) -> Tensor:
        """The preferences of rows int64[B], float64[B, m]."""
        return torch.stack([self._preference(number) for number in (rows // len(self)).tolist()])

    def _preference(self, number: int) -> Tensor:
        if number == 0:
            return torch.full((self.rewards,), 1 / self.rewards, dtype=torch.float64)
        if number <= self.rewards:
            return torch.eye(self.rewards, dtype=torch.float64)[number - 1]
        return draw_preference(self.rewards, keyed_generator(self.seed, "preference", number), self.corners)


def prompt_table(config: TrainConfig, model: Encoder, prompts: Sequence[str]) -> PromptTable:
    """The prompts of a run, encoded; with preferences where each reward has an adapter."""
    negative, cache = config.sampling.negative_prompt, config.prompts.cache
    if not config.algorithm.adapter_per_reward:
        return PromptTable(model, prompts, negative=negative, cache=cache)
    corners = 1.0 if config.algorithm.separate else CORNERS
    rewards, seed = len(config.rewards), config.run.seed
    return StackedPrompts(model, prompts, rewards, seed, negative=negative, cache=cache, corners=corners)


def member_files(config: TrainConfig) -> list[str]:
    """The names of the adapter files, in the order of the rewards.

    ``stacked-<number>-<reward>.safetensors`` for a group that is made to be stacked, else ``adapter-<number>-...``.
    """
    names = [re.sub(r"[^\w.-]+", "_", name.rpartition(":")[2]) for name in config.rewards]
    kind = "stacked" if config.algorithm.stacked else "adapter"
    return [f"{kind}-{number}-{name}.safetensors" for number, name in enumerate(names, 1)]


def member_metadata(metadata: Mapping[str, str], config: TrainConfig, member: int, samples: int) -> dict[str, str]:
    """The header of the file of one reward. Files of a group that is made to be stacked name it.

    ``diffusion_blend.group`` is JSON: ``kind`` is "stacked"; ``id`` is the same in all files of the group and differs from
    every other run or checkpoint; ``member`` is the file's place from 0; ``rewards`` are the names of all.

    Args:
        metadata: the header that all files share.
        config: the settings of the run.
        member: the place in the group.
        samples: images that the run has made so far.
    """
    names = list(short_names(config.rewards).values())
    if config.algorithm.separate:
        return {**metadata, "modelspec.title": names[member], "diffusion_blend.reward": names[member]}
    run = json.dumps([dataclasses.asdict(config), metadata.get("diffusion_blend.base_model", ""), samples])
    group = {
        "kind": "stacked",
        "id": hashlib.sha256(run.encode()).hexdigest()[:16],
        "member": member,
        "rewards": names,
    }
    title = f"{names[member]} (to be stacked, {member + 1} of {len(names)})"
    own = {
        "modelspec.title": title,
        "diffusion_blend.reward": names[member],
        "diffusion_blend.group": json.dumps(group),
    }
    return {**metadata, **own}
