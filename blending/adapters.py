"""Adapters as data: low-rank updates of a network's layers, stacked along their rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Spans = tuple[tuple[int, int, int], ...]
"""For each adapter on a layer: its index, and the start and the end of its rank in the stack."""


@dataclass(frozen=True)
class LowRank:
    """One adapter's update of one layer: ``W + up @ down``.

    Args:
        down: A, float[rank, in, *kernel] (no kernel for a Linear layer).
        up: B, float[out, rank], with the adapter's scale (alpha / rank times strength) in it.

    Raises:
        ValueError: the ranks differ, or the rank is 0.
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        rank = self.down.shape[0]
        if self.up.ndim != 2 or self.up.shape[1] != rank or rank == 0:
            raise ValueError(
                f"up of shape {list(self.up.shape)} and down of shape {list(self.down.shape)} are no low-rank pair: "
                "the same rank above 0 must be up's second and down's first dimension."
            )


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
    """The stacked factors of several adapters for one network, as parameters that a loader can move and count.

    The bank is not part of the network's module tree.

    Args:
        adapters: one mapping per adapter, in order: layer name in the network -> the adapter's update of it. A layer
            may have several updates of one adapter (slices of a fused projection).
        dtype: of the stored factors: the network's compute dtype, so that no call casts them.
    """

    def __init__(self, adapters: Sequence[Mapping[str, Sequence[LowRank]]], dtype: torch.dtype) -> None:
        super().__init__()
        self.adapters = len(adapters)
        names = dict.fromkeys(name for adapter in adapters for name in adapter)
        self.spans: dict[str, Spans] = {}
        factors: list[nn.Parameter] = []
        for name in names:
            down, up, self.spans[name] = _stack([adapter.get(name, ()) for adapter in adapters], dtype)
            factors += [nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)]
        self.factors = nn.ParameterList(factors)

    def stacks(self) -> dict[str, LayerStack]:
        """Return layer name -> stack, with the factors on their present device."""
        factors = iter(self.factors)
        return {
            name: LayerStack(down, up, spans)
            for (name, spans), down, up in zip(self.spans.items(), factors, factors, strict=True)
        }


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
