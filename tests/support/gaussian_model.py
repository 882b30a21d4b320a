"""A text-to-image model with closed-form answers: one Gaussian pixel, an exact denoiser, affine corrections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from diffusion_blend.training.ddim import DdimSteps, ddim_steps
from diffusion_blend.training.models.protocol import Conditioning
from torch import Tensor

SCHEDULE = 1000


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's noise schedule, float64[1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, SCHEDULE, dtype=torch.float64).square()
    return (1 - betas).cumprod(0)


class GaussianModel:
    """Base N(mean, variance) per latent element; trainable: eps gains ``slope[t] x + shift[t]``."""

    def __init__(self, mean: float, variance: float, shape: tuple[int, int, int] = (1, 1, 1)) -> None:
        self.mean, self.variance, self._shape = mean, variance, shape
        self.slope = torch.nn.Parameter(torch.zeros(SCHEDULE))
        self.shift = torch.nn.Parameter(torch.zeros(SCHEDULE))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def policy_steps(self, steps: int, eta: float, noisy: Iterable[int] | None = None) -> DdimSteps:
        timesteps = torch.arange(steps - 1, -1, -1) * (SCHEDULE // steps) + 1
        return ddim_steps(alphas_cumprod(), timesteps, float(alphas_cumprod()[0]), eta, "epsilon", noisy)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        rows = torch.zeros(len(prompts), 1)
        return Conditioning({"nothing": rows}, {"nothing": rows}, rows)

    def base_line(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) of the exact eps ``a x + b`` of N(mean, variance), float64[B] each."""
        alpha_bar = alphas_cumprod()[timesteps]
        slope = (1 - alpha_bar).sqrt() / (alpha_bar * self.variance + 1 - alpha_bar)
        return slope, -slope * alpha_bar.sqrt() * self.mean

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], *, base: bool) -> Tensor:
        slope, shift = (line.float() for line in self.base_line(timesteps))
        if not base:
            slope, shift = slope + self.slope[timesteps], shift + self.shift[timesteps]
        return slope.view(-1, 1, 1, 1) * latents + shift.view(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, -1, -1).clone()

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {"slope": self.slope, "shift": self.shift}

    def export(self, metadata: Mapping[str, str]) -> bytes:
        from safetensors.torch import save

        return save({name: value.detach() for name, value in self.trainable().items()}, metadata=dict(metadata))


def chain(model: GaussianModel, steps: DdimSteps, *, base: bool) -> tuple[Tensor, Tensor]:
    """Return a and b of every step's mean ``a x + b`` under the model's policy, float64[T] each."""
    slope, shift = model.base_line(steps.timesteps)
    if not base:
        slope = slope + model.slope.detach().double()[steps.timesteps]
        shift = shift + model.shift.detach().double()[steps.timesteps]
    return steps.state + steps.output * slope, steps.output * shift


def final_moments(lines: tuple[Tensor, Tensor], std: Tensor) -> tuple[float, float]:
    """Compute mean and variance of x_0 for x_T ~ N(0, 1)."""
    mean, variance = 0.0, 1.0
    for a, b, s in zip(lines[0].tolist(), lines[1].tolist(), std.tolist(), strict=True):
        mean, variance = a * mean + b, a * a * variance + s * s
    return mean, variance


def best_policy(
    base: tuple[Tensor, Tensor], std: Tensor, curvature: float, gradient: float, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Compute the optimal affine policy for ``r(x) = -curvature x^2 / 2 + gradient x``, a linear-quadratic control problem.

    Backwards, with value ``-P x^2 / 2 + h x``: the best mean u maximises
    ``-P u^2 / 2 + h u - kl_weight (u - a x - b)^2 / (2 s^2)``.
    """
    P, h = curvature, gradient
    slopes, shifts = [], []
    for a, b, s in reversed(list(zip(base[0].tolist(), base[1].tolist(), std.tolist(), strict=True))):
        weight = kl_weight / s**2
        gain = weight / (weight + P)
        slopes.append(gain * a)
        shifts.append(gain * b + h / (weight + P))
        # value of the best mean: -(1/2) gain P (a x + b)^2 + gain h (a x + b) + const
        P, h = gain * P * a * a, gain * (h - P * b) * a
    return torch.tensor(slopes[::-1], dtype=torch.float64), torch.tensor(shifts[::-1], dtype=torch.float64)
