"""Adapters of the small denoisers that are trained to be stacked, and the noise of two ways to weigh their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...blending.adapters import LowRank
from ...training.stacking import draw_preference
from .mixture import GaussianMixture, QuadraticReward, weighted_reward
from .networks import LOG_SIGMA, RANK, Denoiser, denoising_loss, fit, precondition

DRAWN = 256
"""Different preferences that one training draws."""


def drawn_preferences(rewards: int, seed: int, held_out: Sequence[float] = (), distance: float = 1 / 32) -> Tensor:
    """Preferences as the trainer draws them; see `training.stacking.draw_preference`.

    Args:
        rewards: m.
        seed: of the draws.
        held_out: weights of the first reward; a preference whose first weight is near one of them is drawn again.
        distance: what is near.

    Returns:
        float64[DRAWN, m].
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    while len(drawn) < DRAWN:
        preference = draw_preference(rewards, generator)
        if all(abs(float(preference[0]) - w) >= distance for w in held_out):
            drawn.append(preference)
    return torch.stack(drawn)


@dataclass(frozen=True)
class Tilts:
    """The tilts of a mixture by ``r(w)`` for many preferences, sampled together: float64[P, K, ...]."""

    log_weights: Tensor
    means: Tensor
    roots: Tensor

    @classmethod
    def of(cls, base: GaussianMixture, rewards: list[QuadraticReward], alpha: float, preferences: Tensor) -> Tilts:
        """Tilt a mixture by ``r(w) / alpha`` for preferences float64[P, m]."""
        tilts = [base.tilted(weighted_reward(rewards, w), alpha) for w in preferences.tolist()]
        return cls(
            torch.stack([tilt.log_weights for tilt in tilts]),
            torch.stack([tilt.means for tilt in tilts]),
            torch.linalg.cholesky(torch.stack([tilt.covariances for tilt in tilts])),
        )

    def sample(self, which: Tensor, generator: torch.Generator) -> Tensor:
        """One point of each of the tilts int64[B], float64[B, d]."""
        mode = torch.multinomial(self.log_weights[which].exp(), 1, generator=generator)[:, 0]
        noise = torch.randn((len(which), self.means.shape[-1]), generator=generator, dtype=self.means.dtype)
        return self.means[which, mode] + (self.roots[which, mode] @ noise[..., None])[..., 0]


class StackedFactors:
    """The factors of m rank-8 adapters on every layer, with one gate for each adapter and point."""

    def __init__(self, base: Denoiser, members: int, generator: torch.Generator) -> None:
        self.base, self.members = base, members
        self.pairs: list[tuple[Tensor, Tensor]] = []
        for layer in base.layers:
            assert isinstance(layer, nn.Linear)
            down = torch.randn((members * RANK, layer.in_features), generator=generator) / layer.in_features**0.5
            up = torch.zeros((layer.out_features, members * RANK))
            self.pairs.append((down.requires_grad_(True), up.requires_grad_(True)))

    @property
    def parameters(self) -> list[Tensor]:
        """All factors."""
        return [factor for pair in self.pairs for factor in pair]

    def denoise(self, gates: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 of points float[B, 2] at noise levels float[B] with gates float[B, m]."""
        spread = gates.repeat_interleave(RANK, dim=1)

        def network(h: Tensor) -> Tensor:
            for index, (layer, (down, up)) in enumerate(zip(self.base.layers, self.pairs, strict=True)):
                h = layer(h) + (h @ down.T * spread) @ up.T
                h = functional.silu(h) if index < len(self.pairs) - 1 else h
            return h

        return precondition(network, x, sigma)

    def adapters(self) -> list[dict[str, list[LowRank]]]:
        """Each adapter for itself: layer name -> its low-rank update, as the side path takes it."""
        parts = [slice(RANK * i, RANK * (i + 1)) for i in range(self.members)]
        return [
            {
                f"layers.{index}": [LowRank(down[part].detach(), up[:, part].detach())]
                for index, (down, up) in enumerate(self.pairs)
            }
            for part in parts
        ]


def train_stacked(
    base: Denoiser, tilts: Tilts, preferences: Tensor, seed: int, steps: int, batch: int = 512
) -> list[dict[str, list[LowRank]]]:
    """Train one adapter for each reward, so that they fit the tilt by r(w) when they are added up with strengths w.

    The loss is that of `networks.train_adapters`; every point has a preference of its own, which is also its gates.

    Args:
        base: stays as it is.
        tilts: of the preferences.
        preferences: float64[P, m]; a point draws one of them.
        seed: of everything random.
        steps: of the optimizer.
        batch: points a step.

    Returns:
        As `networks.train_adapters`, in the order of the rewards.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = StackedFactors(base, preferences.shape[1], generator)
    low, high = LOG_SIGMA

    def loss() -> Tensor:
        which = torch.randint(len(preferences), (batch,), generator=generator)
        clean = tilts.sample(which, generator).float()
        sigma = (low + (high - low) * torch.rand(batch, generator=generator)).exp()
        noised = clean + sigma[:, None] * torch.randn(clean.shape, generator=generator)
        predicted = factors.denoise(preferences[which].float(), noised, sigma)
        return denoising_loss(predicted[None], clean[None], sigma[None])

    fit(factors.parameters, loss, steps, 3e-3)
    return factors.adapters()


def gradient_noise(
    base: Denoiser, mixture: GaussianMixture, rewards: Sequence[QuadraticReward], scales: Sequence[float], seed: int
) -> dict[str, float]:
    """The noise of DiffusionNFT's gradient (arXiv 2509.16117) for stacked adapters, with three ways to weigh the rewards.

    100 batches of 16 groups of 8 points of the base; each group has a preference as the trainer draws them. The optimality of
    a point is ``1/2 + a / 2``, where a is

    - "one loss of the sum": ``r(w)``, normalized in the group, and clamped to [-1, 1];
    - "normalized, then summed": ``sum_k w_k A_k`` of the rewards normalized in the group, clamped;
    - "a loss for each reward": ``sum_k w_k clamp(A_k)``, which is the sum of the rewards' own losses, weighted by w.

    Args:
        base: the denoiser at which the gradient is taken.
        mixture: of the points.
        rewards: m of them.
        scales: factor on each reward.
        seed: of the points.

    Returns:
        For each way the variance of one batch's gradient, summed over the factors, divided by the squared mean.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = StackedFactors(base, len(rewards), generator)
    ways = ("one loss of the sum", "normalized, then summed", "a loss for each reward")
    gradients: dict[str, list[Tensor]] = {way: [] for way in ways}
    ups = [up for _, up in factors.pairs]  # the gradient by the other factors is 0 at the start
    for _ in range(100):
        groups, size = 16, 8
        clean = mixture.sample(groups * size, generator).float()
        w = torch.stack([draw_preference(len(rewards), generator) for _ in range(groups)])
        values = torch.stack([scale * r(clean.double()) for r, scale in zip(rewards, scales, strict=True)], dim=1)
        optimality = _optimality(values.view(groups, size, -1), w)
        sigma = torch.exp(torch.empty(len(clean)).uniform_(*LOG_SIGMA, generator=generator))
        noised = clean + sigma[:, None] * torch.randn(clean.shape, generator=generator)
        predicted = factors.denoise(w.repeat_interleave(size, 0).float(), noised, sigma)
        old = predicted.detach()
        for way, r in zip(ways, optimality, strict=True):
            loss = torch.zeros(())
            for sign, share in ((1, r.flatten()), (-1, 1 - r.flatten())):
                error = old + sign * (predicted - old) - clean
                size_of = error.detach().abs().mean(1).clamp(min=1e-5)
                loss = loss + (share.float() * error.square().mean(1) / size_of).mean()
            found = torch.autograd.grad(loss, ups, retain_graph=True)
            gradients[way].append(torch.cat([part.flatten() for part in found]))
    return {way: _relative_variance(torch.stack(found)) for way, found in gradients.items()}


def _optimality(values: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The optimality of points by the three ways, float64[G, N] each, for rewards float64[G, N, m] and preferences [G, m]."""

    def normalized(v: Tensor) -> Tensor:
        return (v - v.mean(1, keepdim=True)) / (v.std(1, keepdim=True, correction=0) + 1e-6)

    each, weights = normalized(values), w[:, None, :]
    advantages = (
        normalized((values * weights).sum(2)).clamp(-1, 1),
        (each * weights).sum(2).clamp(-1, 1),
        (each.clamp(-1, 1) * weights).sum(2),
    )
    first, second, third = (advantage / 2 + 0.5 for advantage in advantages)
    return first, second, third


def _relative_variance(gradients: Tensor) -> float:
    """Variance over the mean's square, which is estimated without bias, for gradients float[N, P]."""
    variance = float(gradients.var(0).sum())
    return variance / (float(gradients.mean(0).square().sum()) - variance / len(gradients))
