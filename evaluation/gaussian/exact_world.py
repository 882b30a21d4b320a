"""Exact denoisers of the Gaussian world: base, perfectly tuned adapters, their blends, and the exact solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...blending.combine import evaluate
from ...blending.plans import Blend, Gates, base_coefficient
from ...blending.step_info import StepInfo
from .ancestral import Denoise
from .draw_table import draw_table
from .mixture import GaussianMixture, QuadraticReward, weighted_reward


@dataclass(frozen=True)
class World:
    """A base distribution, rewards, and the KL weight alpha (reward units per nat) at which adapters are tuned."""

    base: GaussianMixture
    rewards: list[QuadraticReward]
    alpha: float

    def adapters(self) -> list[GaussianMixture]:
        """What perfect fine-tuning gives for each reward alone."""
        return [self.base.tilted(reward, self.alpha) for reward in self.rewards]

    def exact(self, weights: list[float], kl_scale: float = 1.0) -> GaussianMixture:
        """Return the exact solution for ``r(w)`` at KL weight ``alpha / kl_scale``; the base where the KL scale is 0."""
        if kl_scale == 0:
            return self.base
        return self.base.tilted(weighted_reward(self.rewards, weights), self.alpha / kl_scale)

    def blend(self, weights: list[float], kl_scale: float, steps: int) -> Denoise:
        """The shipped blend plan over the exact denoisers of the adapters."""
        adapters = self.adapters()
        plan = Blend(tuple(kl_scale * weight for weight in weights))

        def denoise(x: Tensor, sigma: float, index: int) -> Tensor:
            def predict(row: tuple[Gates, ...]) -> Tensor:
                gates = row[0]
                chosen = adapters[gates.index(1.0)] if any(gates) else self.base
                return chosen.denoised(x, sigma)

            return evaluate(plan(StepInfo(index, steps)), predict)

        return denoise

    def stochastic(
        self, weights: list[float], kl_scale: float, steps: int, kind: str, images: int, generator: torch.Generator
    ) -> Denoise:
        """One adapter per image and step, drawn by the law of the shipped draws."""
        coefficients = [kl_scale * weight for weight in weights]
        categories = [*self.adapters(), self.base]
        table = draw_table(kind, [*coefficients, base_coefficient(coefficients)], steps, images, generator)

        def denoise(x: Tensor, sigma: float, index: int) -> Tensor:
            denoised = torch.empty_like(x)
            for category, mixture in enumerate(categories):
                chosen = table[index] == category
                if bool(chosen.any()):
                    denoised[chosen] = mixture.denoised(x[chosen], sigma)
            return denoised

        return denoise


def control(mixture: GaussianMixture, base: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """``u(x, sigma) = grad_x log E[exp(r(x0) / alpha) | x_t = x] = (D_tilted - D_base) / sigma^2``, float[B, d]."""
    return (mixture.denoised(x, sigma) - base.denoised(x, sigma)) / sigma**2


def mean_reward_gradient(
    base: GaussianMixture, reward: QuadraticReward, alpha: float, x: Tensor, sigma: float
) -> Tensor:
    """``grad_x E[r(x0) / alpha | x_t = x]``: the control with expectation and exp exchanged (arXiv 2505.18547, eq. 8)."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        mean = base.posterior(point, sigma).mean_reward(reward) / alpha
        return torch.autograd.grad(mean.sum(), point)[0]


def variation(base: GaussianMixture, reward: QuadraticReward, alpha: float, x: Tensor, sigma: float) -> Tensor:
    """L_{t,2} of Lemma 2: the coefficient of variation of ``exp(r(x0) / alpha)`` given ``x_t = x``, float[B].

    ``sqrt(E[exp(2 r / alpha)] / E[exp(r / alpha)]^2 - 1)`` (arXiv 2505.18547, appendix A.2), both exactly known.
    """
    posterior = base.posterior(x, sigma)
    once, twice = posterior.log_expectation(reward, alpha), posterior.log_expectation(reward, alpha / 2)
    return torch.expm1(twice - 2 * once).clamp(min=0).sqrt()
