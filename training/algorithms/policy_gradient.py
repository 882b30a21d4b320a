"""Functions that the policy-gradient algorithms share: the distribution of a recorded step, and the clipped loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...rewards.protocol import weighted_sum
from ..buffer import Transitions
from ..collection import Collection
from ..context import RunContext
from ..models.protocol import predict_guided
from ..objectives import clip_fraction, importance_ratio, policy_loss
from ..policy import gaussian_log_prob, step_mean, step_std


def total_reward(context: RunContext, data: Collection) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of an iteration's rewards, float64[N], and its figures for the log."""
    reward = weighted_sum(data.scores, context.reward_weights(data.prompt))
    figures = {"reward": float(reward.mean()), "reward_std": float(reward.std(correction=0))}
    figures |= {f"reward/{name}": float(values.mean()) for name, values in data.scores.items()}
    return reward, figures | {"diversity": data.diversity}


def recorded_step(context: RunContext, batch: Transitions, *, base: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of recorded denoising steps, under the policy or the base.

    Args:
        context: the run.
        batch: B recorded steps.
        base: under the base, without gradient.

    Returns:
        Mean float32[B, C, H, W], standard deviation broadcast to it, on the network's device.
    """
    latents = batch.latents.to(context.device)
    conditioning = context.prompts.conditioning(batch.prompt).to(context.device)
    timesteps = context.steps.timesteps[batch.step].to(context.device)
    scale = context.config.sampling.guidance_scale
    with torch.set_grad_enabled(not base):
        output = predict_guided(context.model, latents, timesteps, conditioning, scale, base=base)
        return step_mean(context.steps, batch.step, latents, output), step_std(context.steps, batch.step, latents)


def clipped_loss(
    context: RunContext, batch: Transitions, mean: Tensor, std: Tensor, advantage: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The clipped policy-gradient loss of recorded steps, and how far the policy has moved.

    Args:
        context: the run.
        batch: B recorded steps.
        mean: of each step under the policy, with gradient.
        std: of each step.
        advantage: float[B], reward units or standard deviations.

    Returns:
        The mean loss, and the figures ``ratio_deviation`` and ``clip_fraction``.
    """
    algorithm = context.config.algorithm
    log_prob = gaussian_log_prob(batch.next_latents.to(context.device), mean, std)
    ratio = importance_ratio(log_prob, batch.log_prob.to(context.device))
    loss = policy_loss(ratio, advantage, algorithm.clip_range, algorithm.clip).mean()
    return loss, {
        "ratio_deviation": float((ratio.detach() - 1).abs().mean()),
        "clip_fraction": float(clip_fraction(ratio.detach(), algorithm.clip_range)),
    }


def check_fresh_ratio(context: RunContext, deviation: float) -> None:
    """Check that the first update on fresh data saw importance ratios of 1.

    Raises:
        ValueError: the ratios differ from 1 by more than the clip range.
    """
    clip_range = context.config.algorithm.clip_range
    if deviation > clip_range:
        raise ValueError(
            f"importance ratios of fresh data differ from 1 by {deviation:.3g}, more than clip_range {clip_range}: "
            "sampling and update do not compute the same network. Use base.precision fp32 or bf16, or raise "
            "algorithm.clip_range"
        )


def buffer_state(buffer: Transitions | None) -> dict[str, Any]:
    """A buffer for a checkpoint."""
    return buffer.tensors() if buffer is not None else {}


def restored_buffer(saved: dict[str, Any]) -> Transitions | None:
    """A buffer from `buffer_state`. Buffers of older versions do not have the means under the base."""
    return Transitions(**{"base_mean": saved["latents"][:, :0], **saved}) if saved else None


@torch.no_grad()
def with_base_means(context: RunContext, buffer: Transitions) -> Transitions:
    """The buffer with the mean of every step under the base."""
    rows = torch.arange(len(buffer)).split(context.config.sampling.batch)
    means = [recorded_step(context, buffer[part], base=True)[0].cpu() for part in rows]
    return replace(buffer, base_mean=torch.cat(means))
