"""The KL weight alpha of an adapter's training: how it is read, and how adapters of unequal alpha are combined."""

from __future__ import annotations

import math
from collections.abc import Sequence


def parse_kl_weight(text: str | None) -> float | None:
    """Read the metadata entry ``diffusion_blend.kl_weight``.

    Args:
        text: the entry, or None where the file has none.

    Returns:
        alpha in reward units per nat. None where it is unknown: there is no entry, or it is 0, which means that the
        adapter was trained without a KL penalty.

    Raises:
        ValueError: the entry is not a number, not finite, or negative.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"the metadata entry diffusion_blend.kl_weight is {text!r}: it must be a number of at least 0."
        )
    return value or None


def kl_weight_factors(weights: Sequence[float], kl_weights: Sequence[float | None]) -> tuple[float, ...]:
    """Compute the factors ``alpha_i / sum_j w_j alpha_j`` from preference weights to coefficients.

    Adapter i is the tilt ``p_i ~ p_0 exp(r_i / alpha_i)`` of the base, so its score differs from the base's by
    ``grad r_i / alpha_i``. The target for the mixed reward ``r(w) = sum_i w_i r_i`` at KL weight beta is
    ``p_0 exp(r(w) / beta)``. Its score differs by ``sum_i (w_i / beta) grad r_i``, which is
    ``sum_i c_i (score_i - score_0)`` with ``c_i = w_i alpha_i / beta``. The choice
    ``beta = sum_j w_j alpha_j / kl_scale`` makes the coefficients sum to the KL scale. They are continuous in w, and all
    weight on one adapter gives that adapter alone. (Scores are exact at noise level 0; Diffusion Blend, arXiv 2505.18547,
    eq. 9, is the case of equal alpha.)

    Args:
        weights: preference weights w, float[m], sum 1.
        kl_weights: alpha of every adapter, [m]; None where it is unknown.

    Returns:
        float[m]; ``kl_scale * w_i * factor_i`` is coefficient i. All 1 where every known alpha is the same. An adapter of
        unknown alpha counts with the mean of all known ones, so that the factors stay continuous.

    Raises:
        ValueError: a known alpha is not a finite number above 0.
    """
    known = [alpha for alpha in kl_weights if alpha is not None]
    for alpha in known:
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"An adapter's KL weight is {alpha}: it must be a finite number above 0.")
    if not known or min(known) == max(known):
        return (1.0,) * len(weights)
    largest = max(known)
    relative = [alpha / largest for alpha in known]  # their sum cannot overflow
    mean = math.fsum(relative) / len(relative)
    alphas = [mean if alpha is None else alpha / largest for alpha in kl_weights]
    total = math.fsum(w * alpha for w, alpha in zip(weights, alphas, strict=True))
    return tuple(alpha / total for alpha in alphas)
