"""What the artist asks for: a weight per adapter and a distance from the base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_KL_SCALE = 1000
"""Far beyond anything that gives a picture; what lies above is a mistake."""


@dataclass(frozen=True)
class Preference:
    """How much of each reward, and how far from the base model.

    The blend is ``D = D_0 + sum_i c_i (D_i - D_0)`` with ``c_i = kl_scale * w_i``, where ``w`` are the weights divided
    by their sum (Diffusion Blend, arXiv 2505.18547: eq. 9 is kl_scale = 1, eq. 10 is one adapter).

    Args:
        weights: one per adapter in the adapters' order, finite and at least 0; their sum is what 1 means.
        kl_scale: 0 is the base model, 1 the adapters' blend, above 1 and below 0 extrapolate; at most
            `LARGEST_KL_SCALE` either way.

    Raises:
        ValueError: a weight is negative or not finite, or the KL scale is not finite or too large.
    """

    weights: tuple[float, ...]
    kl_scale: float = 1.0

    def __post_init__(self) -> None:
        for number, weight in enumerate(self.weights, start=1):
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(
                    f"weight_{number} is {weight}: a preference weight must be a finite number from 0 up. "
                    "To move away from a reward, use a negative KL scale instead."
                )
        if not abs(self.kl_scale) <= LARGEST_KL_SCALE:
            raise ValueError(
                f"kl_scale is {self.kl_scale}: it must be a number from -{LARGEST_KL_SCALE} to {LARGEST_KL_SCALE} "
                "(0 is the base model, 1 the blend)."
            )

    def followed_by(self, other: Preference) -> Preference:
        """Append another preference's weights, for more adapters than one node has weights; its KL scale counts."""
        return Preference(self.weights + other.weights, other.kl_scale)

    def normalised(self, names: Sequence[str]) -> tuple[float, ...]:
        """Weights over the given adapters, summing to 1.

        Args:
            names: the adapters' names, in order; they label the errors.

        Returns:
            One weight per adapter, float[m], sum 1.

        Raises:
            ValueError: no adapter, fewer weights than adapters, a weight above 0 for an adapter that is not there,
                or no weight above 0.
        """
        if not names:
            raise ValueError("There is no adapter to blend: choose at least one LoRA in Load Reward LoRAs.")
        if len(self.weights) < len(names):
            raise ValueError(
                f"{len(self.weights)} weights for {len(names)} adapters ({', '.join(names)}): give every adapter a weight; "
                "chain a second Preference Weights for more than four."
            )
        for number, weight in enumerate(self.weights[len(names) :], start=len(names) + 1):
            if weight > 0:
                raise ValueError(
                    f"weight_{number} is {weight}, but there is no adapter {number}, only {', '.join(names)}: "
                    "set it to 0 or load another LoRA."
                )
        used = self.weights[: len(names)]
        largest = max(used)
        if largest == 0:
            raise ValueError(
                f"All weights are 0 for {', '.join(names)}: raise at least one. For the plain base model, set kl_scale to 0."
            )
        relative = [weight / largest for weight in used]  # the sum of huge weights would overflow
        total = math.fsum(relative)
        return tuple(weight / total for weight in relative)

    def coefficients(self, names: Sequence[str], kl_weights: Sequence[float | None] = ()) -> tuple[float, ...]:
        """The adapters' coefficients in the affine sum; the base model takes ``1 - sum``.

        ``c_i = kl_scale * w_i * alpha_i / alpha_max``: adapters trained with unequal KL weights alpha are brought to the
        largest of them, since the drift of adapter i is the gradient of ``r_i / alpha_i``.

        Args:
            names: the adapters' names, in order.
            kl_weights: the KL weight alpha (reward units per nat) each adapter was trained with, None where unknown.
                Used only if every adapter with a weight above 0 has one.

        Returns:
            float[m].

        Raises:
            ValueError: as `normalised`; or a KL weight is not a finite number above 0.
        """
        weights = self.normalised(names)
        scales = common_kl_scales(weights, kl_weights or (None,) * len(weights))
        return tuple(self.kl_scale * weight * scale for weight, scale in zip(weights, scales, strict=True))


def common_kl_scales(weights: Sequence[float], kl_weights: Sequence[float | None]) -> tuple[float, ...]:
    """Factors ``alpha_i / alpha_max`` over the adapters in use; all 1 unless every one of them has a KL weight.

    Args:
        weights: preference weights, float[m]; an adapter of weight 0 does not count.
        kl_weights: KL weights alpha, None where unknown, [m].

    Returns:
        float[m], each in (0, 1] for the adapters in use and 1 for the others.

    Raises:
        ValueError: a known KL weight is not a finite number above 0.
    """
    used = [kl_weight for weight, kl_weight in zip(weights, kl_weights, strict=True) if weight > 0]
    for kl_weight in used:
        if kl_weight is not None and not (math.isfinite(kl_weight) and kl_weight > 0):
            raise ValueError(f"An adapter's KL weight is {kl_weight}: it must be a finite number above 0.")
    known = [kl_weight for kl_weight in used if kl_weight is not None]
    if not known or len(known) < len(used):
        return (1.0,) * len(weights)
    largest = max(known)
    return tuple(
        kl_weight / largest if weight > 0 and kl_weight is not None else 1.0
        for weight, kl_weight in zip(weights, kl_weights, strict=True)
    )
