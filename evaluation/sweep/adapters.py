"""The "rewarded soup" of the paper's code: adapters whose factors are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...blending.adapters import LowRank
from ...pipelines.adapter_files import Adapter, Updates


def average_factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Updates:
    """The "rewarded soup" of the paper's code: both factors averaged, ``(sum_i w_i B_i)(sum_i w_i A_i)``.

    That is not the average update ``sum_i w_i B_i A_i``. The paper compares with it.

    Args:
        adapters: of equal rank on every layer they share; a layer that one of them lacks counts as 0.
        weights: float[m].

    Returns:
        One adapter's update.

    Raises:
        ValueError: the ranks differ, or an adapter is no plain LoRA.
    """
    averaged: Updates = {}
    for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.update):
        present = [
            (weight, _factors(adapter, layer))
            for weight, adapter in zip(weights, adapters, strict=True)
            if layer in adapter.update
        ]
        ranks = {pair.down.shape[0] for _, pair in present}
        if len(ranks) > 1:
            raise ValueError(
                f"factor-soup: layer {layer!r} has adapters of ranks {sorted(ranks)}; factors of different ranks cannot be "
                "averaged, so leave factor-soup out"
            )
        down = torch.stack([weight * pair.down for weight, pair in present]).sum(0)
        up = torch.stack([weight * pair.up for weight, pair in present]).sum(0)
        averaged[layer] = [LowRank(down, up)]
    return averaged


def _factors(adapter: Adapter, layer: str) -> LowRank:
    updates = adapter.update[layer]
    if len(updates) != 1 or not isinstance(updates[0], LowRank):
        raise ValueError(
            f"factor-soup: {adapter.name!r} is not a plain LoRA in layer {layer!r}, so there are no factors to average; leave "
            "factor-soup out"
        )
    return updates[0]
