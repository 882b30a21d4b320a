"""Functions that the policy-gradient algorithms share: the distribution of a recorded step, and the clipped loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...rewards.protocol import weighted_sum
from ..adapter_optimizer import AdapterOptimizer, mean_figures
from ..buffer import Transitions
from ..collection import Collection
from ..context import RunContext
from ..models.protocol import predict_guided
from ..objectives import clip_fraction, importance_ratio, policy_loss
from ..policy import PolicySteps, gaussian_log_prob, noise_to_level, step_mean, step_std, training_target
from ..randomness import keyed_generator

RowsLoss = Callable[[Transitions], tuple[Tensor, dict[str, float]]]


def total_reward(context: RunContext, data: Collection) -> tuple[Tensor, dict[str, float]]:
    """The trained reward of an iteration's images, float64[N], and figures for the log, in the rewards' own units."""
    plain = weighted_sum(data.scores, context.reward_weights(data.prompt))
    figures = {"reward": float(plain.mean()), "reward_std": float(plain.std(correction=0))}
    figures |= {f"reward/{name}": float(values.mean()) for name, values in data.scores.items()}
    context.reward_mix.observe(data.scores)
    return context.trained_reward(data.scores, data.prompt), figures | {"diversity": data.diversity}


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
    with torch.set_grad_enabled(not base):
        output = predicted(context, batch, base=base)
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
    ratio = importance_ratio(log_prob, batch.log_prob.to(log_prob.device))
    loss = policy_loss(ratio, advantage, algorithm.clip_range, algorithm.clip).mean()
    return loss, {
        "ratio_deviation": float((ratio.detach() - 1).abs().mean()),
        "clip_fraction": float(clip_fraction(ratio.detach(), algorithm.clip_range)),
    }


def pass_over(
    context: RunContext, optimizer: AdapterOptimizer, fresh: Transitions, iteration: int, loss_of: RowsLoss
) -> dict[str, float]:
    """Make an iteration's optimizer steps: every fresh row once in each of ``algorithm.epochs`` passes.

    Args:
        context: the run.
        optimizer: of the adapter.
        fresh: the iteration's denoising steps.
        iteration: decides the order.
        loss_of: the loss of some rows, and its figures.

    Returns:
        The mean of the steps' figures.

    Raises:
        ValueError: the importance ratios of fresh data are not 1.
    """
    rows = []
    for epoch in range(context.config.algorithm.epochs):
        order = torch.randperm(len(fresh), generator=keyed_generator(context.seed, "policy", iteration, epoch))
        for drawn in order.split(optimizer.rows_per_step):
            rows.append(optimizer.step(drawn, lambda micro: loss_of(fresh[micro])))
            if len(rows) == 1:
                check_fresh_ratio(context, rows[0]["ratio_deviation"])
    return mean_figures(rows)


def at_random_levels(
    steps: PolicySteps, chosen: Transitions, index: Tensor, noise: Tensor, returns: Tensor
) -> Transitions:
    """Clean latents with noise, and the regression target as ``next_latents``.

    Args:
        steps: the sampler's coefficients.
        chosen: clean latents, B of them.
        index: the step whose noise level each row gets, int64[B].
        noise: standard normal, of the latents' shape.
        returns: of each row, float64[B].
    """
    noisy = noise_to_level(steps, index, chosen.latents, noise)
    target = training_target(steps, index, chosen.latents, noise)
    return replace(chosen, latents=noisy, next_latents=target, step=index, returns=returns)


def predicted(context: RunContext, batch: Transitions, *, base: bool = False) -> Tensor:
    """The network's guided output at a batch's latents and steps, under the policy or the base."""
    conditioning = context.prompts.conditioning(batch.prompt).to(context.device)
    timesteps, latents = context.steps.timesteps[batch.step].to(context.device), batch.latents.to(context.device)
    scale = context.config.sampling.guidance_scale
    return predict_guided(context.model, latents, timesteps, conditioning, scale, base=base)


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
    """A buffer from `buffer_state`. Buffers of older versions have neither the means under the base nor baselines (NaN)."""
    if not saved:
        return None
    absent = {
        "base_mean": saved["latents"][:, :0],
        "baseline": torch.full_like(saved["returns"], torch.nan),
    }
    return Transitions(**{**absent, **saved})


@torch.no_grad()
def with_base_means(context: RunContext, buffer: Transitions) -> Transitions:
    """The buffer with the mean of every step under the base."""
    rows = torch.arange(len(buffer)).split(context.config.sampling.batch)
    means = [recorded_step(context, buffer[part], base=True)[0].cpu() for part in rows]
    return replace(buffer, base_mean=torch.cat(means))
