"""The prompts of a run, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .encoded_prompts import FEATURES, PROBE, EncodedInMemory, EncodedOnDisk, named
from .models.protocol import Conditioning, lengthened
from .randomness import keyed_generator

_ENCODE_BATCH = 16


class Encoder(Protocol):
    """The part of a model that encodes prompts."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...


class PromptTable:
    """Prompts with their conditioning, addressed by row."""

    def __init__(self, model: Encoder, prompts: Sequence[str], *, negative: str = "", cache: str = "") -> None:
        """Encode all prompts.

        Args:
            model: encodes prompts.
            prompts: one per row.
            negative: the negative prompt of all rows.
            cache: folder in which the rows are stored and from which they are read when they are needed; empty holds them in
                memory.
        """
        self.prompts = list(prompts)
        first = model.encode_prompts(self.prompts[:1])
        # The negative prompt is the same for all rows, so one row of it is stored.
        self._empty = model.encode_prompts([negative]).prompt if negative else first.empty
        self._rows = EncodedOnDisk(Path(cache), model.encode_prompts([PROBE]), first) if cache else EncodedInMemory()
        missing = [prompt for prompt in dict.fromkeys(self.prompts) if prompt not in self._rows]
        for start in range(0, len(missing), _ENCODE_BATCH):
            part = missing[start : start + _ENCODE_BATCH]
            encoded = model.encode_prompts(part)
            for i, prompt in enumerate(part):
                self._rows.put(prompt, {name: tensor[i : i + 1] for name, tensor in named(encoded).items()})
        self._lengths = self._common_lengths()

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
        stored = [self._rows.get(self.prompts[i]) for i in self.plain(rows).tolist()]
        joined = {name: torch.cat([self._padded(name, row[name]) for row in stored]) for name in stored[0]}
        features = joined.pop(FEATURES)
        empty = {name: self._padded(name, tensor) for name, tensor in self._empty.items()}
        return Conditioning(
            joined, {name: tensor.expand(len(rows), *tensor.shape[1:]) for name, tensor in empty.items()}, features
        )

    def _common_lengths(self) -> dict[str, int]:
        """The length of the longest text, by tensor, where texts differ in length.

        All batches get it, because kernels round differently for other lengths, and the importance ratios of fresh data
        must be 1.
        """
        sizes: dict[str, set[int]] = {}
        for prompt in dict.fromkeys(self.prompts):
            for name, shape in self._rows.shapes(prompt).items():
                sizes.setdefault(name, set()).update(shape[1:2])
        for name, tensor in self._empty.items():
            sizes[name].update(tensor.shape[1:2])
        return {name: max(lengths) for name, lengths in sizes.items() if name != FEATURES and len(lengths) > 1}

    def _padded(self, name: str, tensor: Tensor) -> Tensor:
        length = self._lengths.get(name)
        return tensor if length is None or tensor.shape[1] == length else lengthened(tensor, length)

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
        chosen, size = [], len(self)
        for number, positions in groupby(range(first, first + count), lambda position: position // size):
            order = torch.randperm(size, generator=keyed_generator(seed, "prompts", number))
            chosen.append(order[[position % size for position in positions]])
        return torch.cat(chosen)
