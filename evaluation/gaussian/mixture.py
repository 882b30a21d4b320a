"""Gaussian mixtures: their tilt by a quadratic reward, their diffusion and their scores in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuadraticReward:
    """``r(x) = b . x - x . H x / 2``.

    Attributes:
        name: in tables.
        slope: b, float[d], reward per unit of x.
        curvature: H, symmetric float[d, d]; 0 for a linear reward, positive definite for one with a maximum.
    """

    name: str
    slope: Tensor
    curvature: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Reward of points float[..., d]."""
        return x @ self.slope - ((x @ self.curvature) * x).sum(-1) / 2


def weighted_reward(rewards: list[QuadraticReward], weights: list[float]) -> QuadraticReward:
    """``r(w) = sum_i w_i r_i``, again quadratic."""
    slope = sum((w * r.slope for w, r in zip(weights, rewards, strict=True)), torch.zeros_like(rewards[0].slope))
    bend = sum((w * r.curvature for w, r in zip(weights, rewards, strict=True)), torch.zeros_like(rewards[0].curvature))
    return QuadraticReward("+".join(f"{w:g}{r.name}" for w, r in zip(weights, rewards, strict=True)), slope, bend)


@dataclass(frozen=True)
class GaussianMixture:
    """``p(x) = sum_k exp(log_weights_k) N(x; means_k, covariances_k)``.

    Attributes:
        log_weights: float[..., K], normalised.
        means: float[..., K, d].
        covariances: float[K, d, d], or float[..., K, d, d].
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    def diffused(self, sigma: float) -> GaussianMixture:
        """The distribution of ``x + sigma * noise``."""
        identity = torch.eye(self.means.shape[-1], dtype=self.means.dtype)
        return GaussianMixture(self.log_weights, self.means, self.covariances + sigma**2 * identity)

    def log_density(self, x: Tensor) -> Tensor:
        """``log p(x)`` of points float[B, d], for a mixture without batch dimensions."""
        return self._log_joint(x).logsumexp(-1)

    def posterior(self, x: Tensor, sigma: float) -> GaussianMixture:
        """``p(x0 | x_t = x)`` for ``x_t = x0 + sigma * noise``: a mixture for each point.

        Component k has responsibility ``~ w_k N(x; m_k, S_k + sigma^2 I)``, covariance ``C_k = (S_k^-1 + I/sigma^2)^-1``
        and mean ``C_k (S_k^-1 m_k + x/sigma^2)``.

        Args:
            x: points float[B, d].
            sigma: noise level, above 0.

        Returns:
            A mixture with means float[B, K, d].
        """
        log_weights = self.diffused(sigma)._log_joint(x).log_softmax(-1)
        precisions = torch.linalg.inv(self.covariances)
        identity = torch.eye(x.shape[-1], dtype=x.dtype)
        covariances = torch.linalg.inv(precisions + identity / sigma**2)
        pulls = (precisions @ self.means[..., None])[..., 0] + x[:, None, :] / sigma**2  # [B, K, d]
        return GaussianMixture(log_weights, torch.einsum("kij,bkj->bki", covariances, pulls), covariances)

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """``E[x0 | x_t = x]``, float[B, d]: the mean of `posterior`, in two matrix products for speed."""
        precisions = torch.linalg.inv(self.covariances)
        dimensions = x.shape[-1]
        covariances = torch.linalg.inv(precisions + torch.eye(dimensions, dtype=x.dtype) / sigma**2)  # [K, d, d]
        fixed = (covariances @ precisions @ self.means[..., None])[..., 0]
        shares = self.diffused(sigma)._log_joint(x).softmax(-1)  # [B, K]
        slope = (shares @ covariances.flatten(1)).unflatten(1, (dimensions, dimensions))
        return shares @ fixed + (slope @ x[..., None])[..., 0] / sigma**2

    def log_expectation(self, reward: QuadraticReward, alpha: float) -> Tensor:
        """``log E[exp(r(x) / alpha)]``, for every batch entry: float[...]."""
        return self._tilted_log_weights(reward, alpha)[0].logsumexp(-1)

    def tilted(self, reward: QuadraticReward, alpha: float) -> GaussianMixture:
        """``p(x) exp(r(x) / alpha)``, normalised: the result of a perfect fine-tuning with KL weight alpha.

        (Diffusion Blend, arXiv 2505.18547, the solution of eq. 3.) Component k becomes ``N(m', S')`` with
        ``S' = (S^-1 + H/alpha)^-1`` and ``m' = S' (S^-1 m + b/alpha)``.

        Raises:
            ValueError: the tilt has no normaliser (a reward that grows faster than the density falls).
        """
        log_weights, means, covariances = self._tilted_log_weights(reward, alpha)
        return GaussianMixture(log_weights.log_softmax(-1), means, covariances)

    def mean_reward(self, reward: QuadraticReward) -> Tensor:
        """``E[r(x)]``, exactly: float[...]."""
        spread = (self.covariances * reward.curvature).sum((-2, -1)) / 2
        return (self.log_weights.exp() * (reward(self.means) - spread)).sum(-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points, float[count, d], from a mixture without batch dimensions."""
        chosen = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn((count, self.means.shape[-1]), generator=generator, dtype=self.means.dtype)
        roots = torch.linalg.cholesky(self.covariances)
        return self.means[chosen] + (roots[chosen] @ noise[..., None])[..., 0]

    def _log_joint(self, x: Tensor) -> Tensor:
        precisions = torch.linalg.inv(self.covariances)
        pulls = (precisions @ self.means[..., None])[..., 0]  # [K, d]
        outer = (x[:, :, None] * x[:, None, :]).flatten(1)  # [B, d * d]
        square = outer @ precisions.flatten(1).T - 2 * x @ pulls.T + (pulls * self.means).sum(-1)
        logdet = torch.logdet(self.covariances)
        return self.log_weights - (square + logdet + x.shape[-1] * math.log(2 * math.pi)) / 2

    def _tilted_log_weights(self, reward: QuadraticReward, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        precisions = torch.linalg.inv(self.covariances)
        tilted = precisions + reward.curvature / alpha
        if bool((torch.linalg.eigvalsh(tilted) <= 0).any()):
            raise ValueError(
                f"exp({reward.name} / {alpha:g}) grows faster than the density falls: the tilted distribution does not "
                "exist. Use a larger alpha or a reward with a maximum."
            )
        covariances = torch.linalg.inv(tilted)
        pulls = (precisions @ self.means[..., None])[..., 0]
        pulled = pulls + reward.slope / alpha
        means = (covariances @ pulled[..., None])[..., 0]
        gain = ((pulled * means).sum(-1) - (pulls * self.means).sum(-1)) / 2
        logdet = (torch.logdet(covariances) - torch.logdet(self.covariances)) / 2
        return self.log_weights + gain + logdet, means, covariances


def ring(modes: int = 8, radius: float = 2.0, deviation: float = 0.15) -> GaussianMixture:
    """Equal Gaussians on a circle, float64: the world of every study here."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=-1)
    covariance = deviation**2 * torch.eye(2, dtype=torch.float64)
    log_weights = torch.full((modes,), -math.log(modes), dtype=torch.float64)
    return GaussianMixture(log_weights, means, covariance.expand(modes, 2, 2))


def ring_rewards() -> list[QuadraticReward]:
    """Six rewards on the plane: three linear ones, and three with a maximum at a point or along a line."""

    def linear(name: str, x: float, y: float) -> QuadraticReward:
        return QuadraticReward(name, torch.tensor([x, y], dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))

    def near(name: str, x: float, y: float, bend_x: float, bend_y: float) -> QuadraticReward:
        curvature = torch.diag(torch.tensor([bend_x, bend_y], dtype=torch.float64))
        return QuadraticReward(name, curvature @ torch.tensor([x, y], dtype=torch.float64), curvature)

    diagonal = math.sqrt(0.5)
    return [
        linear("right", 1, 0),
        linear("up", 0, 1),
        near("centre", 0, 0, 1, 1),
        linear("upper left", -diagonal, diagonal),
        near("horizontal", 0, 0, 0, 1),
        near("point (1, 1)", 1, 1, 0.5, 0.5),
    ]
