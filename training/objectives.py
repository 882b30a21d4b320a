"""Losses of the policy gradient, as pure functions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Clip = Literal["hard", "ppo"]


def importance_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """How much likelier the trained policy makes a step than the policy that took it.

    ``ratio = p_theta(x_prev | x_t) / p_old(x_prev | x_t)``, exactly 1 on fresh data.

    Args:
        log_prob: under the trained policy, float64[B], nats.
        old_log_prob: under the policy that took the step, float64[B], nats.

    Returns:
        Ratios, float64[B].
    """
    return torch.exp(log_prob - old_log_prob)


def policy_loss(ratio: Tensor, advantage: Tensor, clip_range: float, clip: Clip) -> Tensor:
    """Clipped policy-gradient loss, to be minimised.

    ``hard``: ``-A clamp(ratio, 1 - c, 1 + c)``: no gradient outside (DPOK, Fan et al. 2023, arXiv 2305.16381, in its
    public code). ``ppo``: ``-min(A ratio, A clamp(ratio, 1 - c, 1 + c))``: a step that has moved the wrong way still
    gets its gradient (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        ratio: importance ratios, float[B].
        advantage: return minus baseline, float[B], reward units; no gradient flows into it.
        clip_range: c, above 0.
        clip: which form.

    Returns:
        Losses, float[B], reward units.

    Raises:
        ValueError: a clip range that is not above 0.
    """
    if not clip_range > 0:
        raise ValueError(f"clip range {clip_range}: it must be above 0, or nothing would ever be learnt")
    advantage = advantage.detach()
    clipped = advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    return -clipped if clip == "hard" else -torch.minimum(advantage * ratio, clipped)


def clip_fraction(ratio: Tensor, clip_range: float) -> Tensor:
    """Share of steps whose ratio lies outside 1 +- clip_range, float[]."""
    return ((ratio - 1).abs() > clip_range).double().mean()


def returns_to_go(reward: Tensor, kl: Tensor, kl_weight: float) -> Tensor:
    """Returns of every step: the final reward minus the KL penalty of all later steps.

    ``R_k = r(x_0) - alpha sum_{j > k} KL_j``. With these returns the policy gradient plus the direct gradient of each
    KL_k is the exact gradient of ``E[r(x_0) - alpha sum_k KL_k]`` (Diffusion Blend, arXiv 2505.18547, eq. 4); with
    ``R_k = r(x_0)`` (zero ``kl``), as in DPOK's code, the effect of a step on later KLs is left out.

    Args:
        reward: final reward, float64[B].
        kl: per-step KL to the base, float64[B, T], nats, in the order of denoising.
        kl_weight: alpha, reward units per nat.

    Returns:
        Returns, float64[B, T], reward units.
    """
    later = kl.flip(1).cumsum(1).flip(1) - kl
    return reward[:, None] - kl_weight * later
