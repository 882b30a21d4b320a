"""Samples trajectories from noise to images, and computes the log-probability and the KL to the base of every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .models.protocol import Conditioning, TextToImageModel, predict_guided
from .policy import PolicySteps, gaussian_kl, gaussian_log_prob, step_mean, step_std


@dataclass(frozen=True)
class Trajectories:
    """Denoising runs, on the CPU.

    Attributes:
        latents: every state from noise to clean latent, float32[B, T + 1, C, H, W].
        log_prob: of each step under the policy that sampled it, float64[B, T], nats; 0 where a step has no noise.
        kl: of each step to the base, float64[B, T], nats; 0 where it was not measured or the step has no noise.
        base_mean: of each step under the base, float32[B, T, C, H, W]; T is 0 where it was not measured.
        images: float32[B, 3, H, W] in 0..1; of videos float32[B, N, 3, H, W].

    Latents of videos have a dimension of frames after their channels.
    """

    latents: Tensor
    log_prob: Tensor
    kl: Tensor
    base_mean: Tensor
    images: Tensor


@torch.no_grad()
def collect(
    model: TextToImageModel,
    steps: PolicySteps,
    conditioning: Conditioning,
    noise: Tensor,
    scale: float,
    *,
    measure_kl: bool,
    base: bool = False,
) -> Trajectories:
    """Sample from the policy.

    Args:
        model: the network.
        steps: the sampler's coefficients, T of them.
        conditioning: one row per trajectory.
        noise: the starting latent and one draw per step, float32[B, T + 1, C, H, W].
        scale: guidance scale.
        measure_kl: also evaluate the base at every step (twice the network calls).
        base: sample from the base instead of the trained policy.

    Returns:
        The trajectories and their images.
    """
    conditioning = conditioning.to(model.device)
    latents = noise[:, 0].to(model.device)
    states, log_probs, kls, base_means = [latents.cpu()], [], [], []
    for k in range(len(steps)):
        index = torch.full((len(latents),), k)
        latents, log_prob, kl, base_mean = _step(
            model, steps, index, latents, conditioning, noise[:, k + 1].to(model.device), scale, measure_kl, base
        )
        states.append(latents.cpu())
        log_probs.append(log_prob.cpu())
        kls.append(kl.cpu())
        base_means.append(base_mean.cpu())
    return Trajectories(
        torch.stack(states, 1),
        torch.stack(log_probs, 1),
        torch.stack(kls, 1),
        torch.stack(base_means, 1) if measure_kl else latents.cpu()[:, None][:, :0],
        model.decode(latents),
    )


def _step(
    model: TextToImageModel,
    steps: PolicySteps,
    index: Tensor,
    latents: Tensor,
    conditioning: Conditioning,
    noise: Tensor,
    scale: float,
    measure_kl: bool,
    base: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    timesteps = steps.timesteps[index].to(latents.device)
    mean = step_mean(steps, index, latents, predict_guided(model, latents, timesteps, conditioning, scale, base=base))
    std = step_std(steps, index, latents)
    nothing = torch.zeros(len(latents), dtype=torch.float64)
    if float(steps.std[index[0]]) == 0:
        return mean, nothing, nothing, mean
    sample = mean + std * noise
    kl, reference = nothing, mean
    if measure_kl:
        output = predict_guided(model, latents, timesteps, conditioning, scale, base=True)
        reference = step_mean(steps, index, latents, output)
        kl = gaussian_kl(mean, reference, std)
    return sample, gaussian_log_prob(sample, mean, std), kl, reference
