"""Small denoisers of the plane and their rank-8 adapters, trained by score matching until they converge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...blending.adapters import LowRank
from .mixture import GaussianMixture

RANK = 8
WIDTH = 96
FEATURES = 8  # of the noise level
LOG_SIGMA = (math.log(0.01), math.log(40.0))
# Standard deviation of the ring's points: the preconditioning's only knowledge of the data.
DATA_DEVIATION = 1.4

Factors = dict[str, tuple[Tensor, Tensor]]
"""Layer name -> down float[M, rank, in] and up float[M, out, rank] of M adapters."""


class Denoiser(nn.Module):
    """A multilayer perceptron with the preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1).

    ``D(x, sigma) = c_skip x + c_out F(c_in x, log sigma)``.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [2 + FEATURES, WIDTH, WIDTH, WIDTH, 2]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict x0 of points float[B, 2] at noise levels float[B]."""
        return precondition(self._network, x, sigma)

    def _network(self, h: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            h = functional.silu(layer(h))
        return self.layers[-1](h)


def precondition(network: object, x: Tensor, sigma: Tensor) -> Tensor:
    """Wrap a raw network ``F`` of points float[..., 2] and noise levels float[...] into a denoiser."""
    sigma = sigma[..., None]
    total = (sigma**2 + DATA_DEVIATION**2).sqrt()
    level = sigma.log() / 4
    powers = [wave(2**k * level) for k in range(FEATURES // 2) for wave in (torch.sin, torch.cos)]
    raw = network(torch.cat([x / total, *powers], dim=-1))  # type: ignore[operator]
    return (DATA_DEVIATION / total) ** 2 * x + sigma * DATA_DEVIATION / total * raw


def _batch(mixtures: Sequence[GaussianMixture], size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Clean points float[M, size, 2], their noised forms, and the noise levels float[M, size]."""
    clean = torch.stack([mixture.sample(size, generator) for mixture in mixtures]).float()
    low, high = LOG_SIGMA
    sigma = (low + (high - low) * torch.rand(clean.shape[:-1], generator=generator)).exp()
    return clean, clean + sigma[..., None] * torch.randn(clean.shape, generator=generator), sigma


def denoising_loss(predicted: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The weighted squared error of predictions float[M, B, 2], summed over the M networks that are trained side by side."""
    # Karras et al. 2022: the weight that makes the raw network's target unit variance at every sigma.
    weight = (sigma**2 + DATA_DEVIATION**2) / (sigma * DATA_DEVIATION) ** 2
    return (weight[..., None] * (predicted - clean).square()).mean(dim=(-1, -2)).sum()


def fit(parameters: list[Tensor], loss: object, steps: int, rate: float) -> None:
    """Minimize a loss by Adam, with a learning rate that falls to 0 along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[operator]
        # Rare large steps at small sigma would otherwise throw an adapter off for good.
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        anneal.step()


def train_base(mixture: GaussianMixture, seed: int, steps: int, batch: int = 512) -> Denoiser:
    """Train a denoiser of a mixture from scratch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Denoiser()

    def loss() -> Tensor:
        clean, noised, sigma = _batch([mixture], batch, generator)
        return denoising_loss(network(noised[0], sigma[0])[None], clean, sigma)

    fit(list(network.parameters()), loss, steps, 3e-3)
    return network.requires_grad_(False)


def train_adapters(
    base: Denoiser, mixtures: Sequence[GaussianMixture], seed: int, steps: int, batch: int = 256
) -> list[dict[str, list[LowRank]]]:
    """Train one rank-8 adapter on every layer for each tilted distribution, all side by side.

    The loss is score matching on the tilted distribution ``p exp(r/alpha)``, sampled exactly. It is the same objective as
    matching on base samples weighted by ``exp(r/alpha)``, whose minimum is the converged alignment, with less variance.

    Returns:
        For each mixture: layer name -> its low-rank update, as the side path takes it.
    """
    generator = torch.Generator().manual_seed(seed)
    factors: Factors = {}
    for index, layer in enumerate(base.layers):
        assert isinstance(layer, nn.Linear)
        down = torch.randn((len(mixtures), RANK, layer.in_features), generator=generator) / layer.in_features**0.5
        up = torch.zeros((len(mixtures), layer.out_features, RANK))
        factors[f"layers.{index}"] = (down.requires_grad_(True), up.requires_grad_(True))

    def loss() -> Tensor:
        clean, noised, sigma = _batch(mixtures, batch, generator)
        return denoising_loss(precondition(lambda h: _side_by_side(base, factors, h), noised, sigma), clean, sigma)

    fit([factor for pair in factors.values() for factor in pair], loss, steps, 3e-3)
    return [
        {name: [LowRank(down[m].detach(), up[m].detach())] for name, (down, up) in factors.items()}
        for m in range(len(mixtures))
    ]


def _side_by_side(base: Denoiser, factors: Factors, h: Tensor) -> Tensor:
    last = len(base.layers) - 1
    for index, layer in enumerate(base.layers):
        down, up = factors[f"layers.{index}"]
        h = layer(h) + (h @ down.mT) @ up.mT  # [M, B, in] -> [M, B, out]
        h = functional.silu(h) if index < last else h
    return h


def average_factors(adapters: Sequence[dict[str, list[LowRank]]], weights: Sequence[float]) -> dict[str, list[LowRank]]:
    """The paper's "rewarded soup": both factors averaged, ``(sum w B)(sum w A)``, which is not the average update."""
    averaged: dict[str, list[LowRank]] = {}
    for name in adapters[0]:
        down = torch.stack([w * adapter[name][0].down for w, adapter in zip(weights, adapters, strict=True)]).sum(0)
        up = torch.stack([w * adapter[name][0].up for w, adapter in zip(weights, adapters, strict=True)]).sum(0)
        averaged[name] = [LowRank(down, up)]
    return averaged
