"""Adapters as data: low-rank updates of a network's layers, stacked along their rank, and updates of other kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .updates import LowRank, Update

Spans = tuple[tuple[int, int, int], ...]
"""For each adapter on a layer: its index, and the start and the end of its rank in the stack."""


@dataclass(frozen=True)
class LayerStack:
    """All adapters' updates of one layer. Two products serve any number of adapters.

    Args:
        down: float[R, in, *kernel] for a convolution, float[in, R] for a Linear layer, R the sum of the ranks.
        up: float[R, out].
        spans: the ranks of each adapter.
    """

    down: Tensor
    up: Tensor
    spans: Spans


class AdapterBank(nn.Module):
    """The tensors of several adapters for one network, as parameters that a loader can move and count.

    The bank is not part of the network's module tree.

    Args:
        adapters: one mapping per adapter, in order: name of a layer (or of a parameter, for `ParameterDifference`) -> the
            adapter's updates of it. There may be several: slices of a fused projection, or a weight and its bias.
        dtype: of the stored tensors: the network's compute dtype, so that no call casts them.
        weighted: how many of them, the first ones, have a weight of their own; None for all. The others are cross adapters.
    """

    def __init__(
        self, adapters: Sequence[Mapping[str, Sequence[Update]]], dtype: torch.dtype, weighted: int | None = None
    ) -> None:
        super().__init__()
        self.adapters = len(adapters)
        self.weighted = self.adapters if weighted is None else weighted
        self.spans: dict[str, Spans] = {}
        self._others: list[tuple[str, int, Update]] = []  # layer, adapter, the update without its numbers
        factors: list[Tensor] = []
        others: list[Tensor] = []
        for name in dict.fromkeys(name for adapter in adapters for name in adapter):
            pairs = [_of_kind(adapter.get(name, ()), low_rank=True) for adapter in adapters]
            if any(pairs):
                down, up, self.spans[name] = _stack(pairs, dtype)
                factors += [down, up]
            for index, adapter in enumerate(adapters):
                for update in _of_kind(adapter.get(name, ()), low_rank=False):
                    tensors = update.tensors()
                    self._others.append((name, index, update.with_tensors(part.to("meta") for part in tensors)))
                    others += [part.to(dtype) for part in tensors]
        self.factors = nn.ParameterList(nn.Parameter(part, requires_grad=False) for part in factors + others)

    def names(self) -> set[str]:
        """Return the names of the layers and parameters with updates."""
        return {*self.spans, *(name for name, _, _ in self._others)}

    def reading_output(self) -> dict[str, set[int]]:
        """Return the layers with updates that read the layer's output (`Update.reads_output`), and those adapters' indices."""
        found: dict[str, set[int]] = {}
        for name, adapter, update in self._others:
            if update.reads_output:
                found.setdefault(name, set()).add(adapter)
        return found

    def stacks(self) -> dict[str, LayerStack]:
        """Return layer name -> stack, with the factors on their present device."""
        factors = iter(self._tensors())
        return {name: LayerStack(next(factors), next(factors), spans) for name, spans in self.spans.items()}

    def _tensors(self) -> list[Any]:
        # The list's own iterator takes several microseconds for each.
        return list(self.factors._parameters.values())

    def others(self) -> dict[str, list[tuple[int, Update]]]:
        """Return the updates that are not low-rank: name -> pairs of an adapter's index and its update."""
        tensors = iter(self._tensors()[2 * len(self.spans) :])
        found: dict[str, list[tuple[int, Update]]] = {}
        for name, adapter, update in self._others:
            found.setdefault(name, []).append((adapter, update.with_tensors(tensors)))
        return found


def _of_kind(updates: Sequence[Update], low_rank: bool) -> list[Any]:
    return [update for update in updates if isinstance(update, LowRank) == low_rank]


def _stack(updates: Sequence[Sequence[LowRank]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Spans]:
    spans: list[tuple[int, int, int]] = []
    start = 0
    for adapter, pairs in enumerate(updates):
        rank = sum(pair.down.shape[0] for pair in pairs)
        if rank:
            spans.append((adapter, start, start + rank))
            start += rank
    pairs = [pair for some in updates for pair in some]
    down = torch.cat([pair.down for pair in pairs]).to(dtype)
    # In this layout BLAS need not transpose the right factor of a product with few columns (docs/speed.md).
    down = down.t().contiguous() if down.ndim == 2 else down.contiguous()
    up = torch.cat([pair.up.t() for pair in pairs]).to(dtype).contiguous()
    return down, up, tuple(spans)
