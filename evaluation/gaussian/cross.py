"""Cross and distilled adapters in the plane: fitted to the blend's own predictions, without a reward and without new data.

The soup of two adapters misses the interaction of their updates. It is 0 in the corners of the simplex, so one more adapter with
the gate ``4 w_1 w_2`` can hold it for every preference. With a fixed preference one ordinary adapter can hold the whole blend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...blending.adapters import LowRank
from ...blending.baking import join_pairs, reduce_rank
from .networks import DATA_DEVIATION, LOG_SIGMA, RANK, Denoiser, _fit, precondition

Adapter = dict[str, list[LowRank]]
Pairs = list[tuple[Tensor, Tensor]]
"""down float[rank, in] and up float[out, rank] of every layer."""

BATCH = 512


def cross_gate(first: float | Tensor, second: float | Tensor) -> Any:
    """``4 w_1 w_2``: 0 in the corners, 1 halfway."""
    return 4 * first * second


def predict(
    base: Denoiser, adapters: Sequence[Pairs], gates: Sequence[Tensor | float], x: Tensor, sigma: Tensor
) -> Tensor:
    """Predict x0 with gated adapters on every layer, differentiable in their factors.

    Args:
        base: the frozen network.
        adapters: n adapters.
        gates: n gates, numbers or float[B, 1].
        x: points float[B, 2].
        sigma: noise levels float[B].
    """

    def network(h: Tensor) -> Tensor:
        last = len(base.layers) - 1
        for index, layer in enumerate(base.layers):
            y = layer(h)
            for adapter, gate in zip(adapters, gates, strict=True):
                down, up = adapter[index]
                y = y + gate * ((h @ down.T) @ up.T)
            h = functional.silu(y) if index < last else y
        return h

    return precondition(network, x, sigma)


def pairs_of(adapter: Adapter) -> Pairs:
    """An adapter's factors in the order of the layers."""
    return [(pair.down, pair.up) for (pair,) in adapter.values()]


def train_cross(base: Denoiser, adapters: Sequence[Adapter], points: Tensor, seed: int, steps: int) -> Adapter:
    """Fit the cross adapter of two adapters: soup plus ``4 w (1 - w)`` times the new adapter equals the blend, for random w.

    Args:
        base: the frozen network.
        adapters: the two.
        points: samples of the blend, float[N, 2], which are noised again.
        seed: of the factors and of the batches.
        steps: of the optimizer.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = map(pairs_of, adapters)
    new: Pairs = []
    for down, up in first:
        start = torch.randn((RANK, down.shape[1]), generator=generator) / down.shape[1] ** 0.5
        new.append((start.requires_grad_(True), torch.zeros((up.shape[0], RANK), requires_grad=True)))

    def batch_loss() -> Tensor:
        x, sigma = _noised(points, generator)
        w = torch.rand((len(x), 1), generator=generator)
        with torch.no_grad():
            blend = w * predict(base, [first], [1.0], x, sigma) + (1 - w) * predict(base, [second], [1.0], x, sigma)
        found = predict(base, [first, second, new], [w, 1 - w, cross_gate(w, 1 - w)], x, sigma)
        return _loss(found, blend, sigma)

    return _trained(adapters[0], new, batch_loss, steps)


def train_distilled(
    base: Denoiser,
    adapters: Sequence[Adapter],
    coefficients: Sequence[float],
    rank: int,
    points: Tensor,
    seed: int,
    steps: int,
) -> Adapter:
    """Fit one adapter of a rank to the blend at fixed coefficients. It starts as the soup's closest adapter of that rank.

    Args:
        base: the frozen network.
        adapters: m adapters.
        coefficients: c, float[m], any sign; the base has ``1 - sum c``.
        rank: of the new adapter.
        points: samples of the blend, float[N, 2].
        seed: of the batches.
        steps: of the optimizer.
    """
    generator = torch.Generator().manual_seed(seed)
    own = [pairs_of(adapter) for adapter in adapters]
    mix = [*coefficients, 1 - sum(coefficients)]
    new: Pairs = []
    for name in adapters[0]:
        soup = join_pairs([(c, adapter[name][0]) for c, adapter in zip(coefficients, adapters, strict=True)])
        start = reduce_rank(soup, rank)[0]
        new.append((start.down.clone().requires_grad_(True), start.up.clone().requires_grad_(True)))

    def batch_loss() -> Tensor:
        x, sigma = _noised(points, generator)
        with torch.no_grad():
            parts = [predict(base, [pairs], [1.0], x, sigma) for pairs in own]
            parts.append(predict(base, [], [], x, sigma))
            blend = sum((c * part for c, part in zip(mix, parts, strict=True)), torch.zeros_like(x))
        return _loss(predict(base, [new], [1.0], x, sigma), blend, sigma)

    return _trained(adapters[0], new, batch_loss, steps)


def _noised(points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = points[torch.randint(len(points), (BATCH,), generator=generator)]
    low, high = LOG_SIGMA
    sigma = (low + (high - low) * torch.rand(BATCH, generator=generator)).exp()
    return clean + sigma[:, None] * torch.randn(clean.shape, generator=generator), sigma


def _loss(found: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    # The weight of score matching (Karras et al. 2022), so that all noise levels count alike.
    weight = (sigma**2 + DATA_DEVIATION**2) / (sigma * DATA_DEVIATION) ** 2
    return (weight[:, None] * (found - target).square()).mean()


def _trained(like: Adapter, new: Pairs, loss: Callable[[], Tensor], steps: int) -> Adapter:
    _fit([factor for pair in new for factor in pair], loss, steps, 3e-3)
    return {name: [LowRank(down.detach(), up.detach())] for name, (down, up) in zip(like, new, strict=True)}
