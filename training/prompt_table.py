"""The prompts of a run, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .models.protocol import Conditioning, stack_conditioning
from .randomness import keyed_generator

_ENCODE_BATCH = 16


class Encoder(Protocol):
    """The part of a model that encodes prompts."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...


class PromptTable:
    """Prompts with their conditioning, addressed by row."""

    def __init__(self, model: Encoder, prompts: Sequence[str]) -> None:
        """Encode all prompts.

        Args:
            model: encodes prompts.
            prompts: one per row.
        """
        self.prompts = list(prompts)
        self._rows: list[Conditioning] = []
        for start in range(0, len(self.prompts), _ENCODE_BATCH):
            encoded = model.encode_prompts(self.prompts[start : start + _ENCODE_BATCH])
            self._rows += [_row(encoded, i) for i in range(len(encoded.features))]

    def __len__(self) -> int:
        return len(self.prompts)

    def plain(self, rows: Tensor) -> Tensor:
        """The rows' prompts alone, int64[B] below the number of prompts; see `stacking.StackedPrompts`."""
        return rows % len(self)

    def conditioning(self, rows: Tensor) -> Conditioning:
        """The conditioning of rows int64[B], B rows."""
        return self.encoded(rows)

    def encoded(self, rows: Tensor) -> Conditioning:
        """The texts' conditioning of rows int64[B] and nothing else."""
        return stack_conditioning([self._rows[i] for i in self.plain(rows).tolist()])

    def texts(self, rows: Tensor) -> list[str]:
        """The prompts of rows int64[B]."""
        return [self.prompts[i] for i in self.plain(rows).tolist()]

    def shuffled_rows(self, seed: int, first: int, count: int) -> Tensor:
        """A section of an endless list that goes through all prompts, reshuffled at every pass.

        Args:
            seed: of the shuffles.
            first: position in the endless list.
            count: length of the section.

        Returns:
            Rows of this table, int64[count].
        """
        chosen = []
        for position in range(first, first + count):
            pass_number, place = divmod(position, len(self))
            chosen.append(torch.randperm(len(self), generator=keyed_generator(seed, "prompts", pass_number))[place])
        return torch.stack(chosen)


def _row(conditioning: Conditioning, i: int) -> Conditioning:
    return Conditioning(
        {name: tensor[i : i + 1] for name, tensor in conditioning.prompt.items()},
        {name: tensor[i : i + 1] for name, tensor in conditioning.empty.items()},
        conditioning.features[i : i + 1],
    )
