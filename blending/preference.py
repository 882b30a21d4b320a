"""Preferences: a weight per adapter and a KL scale, fixed, moving over the run, or different within the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .any_preference import AnyPreference
from .kl_weights import kl_weight_factors
from .schedules import CURVES, CoefficientSchedule, Interpolated, Regional, feather
from .slots import Link, Slots, arrange_weights, loaders_of_nodes

LARGEST_KL_SCALE = 1000
"""Larger KL scales give no picture, so they are mistakes."""


@dataclass(frozen=True)
class Preference:
    """How much of each reward, and how far from the base model.

    The blend is ``D = D_0 + sum_i c_i (D_i - D_0)`` with ``c_i = kl_scale * w_i``, where ``w`` are the weights divided
    by their sum (Diffusion Blend, arXiv 2505.18547: eq. 9 is kl_scale = 1, eq. 10 is one adapter).

    Args:
        weights: one per adapter in the adapters' order, finite and at least 0. They count relative to their sum.
        kl_scale: 0 is the base model, 1 the adapters' blend. Values above 1 and below 0 extrapolate, up to
            `LARGEST_KL_SCALE` in either direction.
        nodes: how many weights each weight node has, in order, where the weights belong to slots of loaders, some of which
            may be empty. An empty tuple means that the weights are one per adapter.
        links: the adapters that each weight node is connected to itself, None for one that is not; empty if no node is.

    Raises:
        ValueError: a weight is negative or not finite, or the KL scale is not finite or too large.
    """

    weights: tuple[float, ...]
    kl_scale: float = 1.0
    nodes: tuple[int, ...] = ()
    links: tuple[Link | None, ...] = ()

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

    @property
    def parts(self) -> tuple[Preference, ...]:
        """Itself."""
        return (self,)

    def at_kl_scale(self, kl_scale: float) -> Preference:
        """The same weights at another distance from the base model."""
        return replace(self, kl_scale=kl_scale)

    def followed_by(self, other: Preference) -> Preference:
        """Append another preference's weights, for more adapters than one node has weights. The other's KL scale counts."""
        nodes = () if not self.nodes or not other.nodes else self.nodes + other.nodes
        links = self._all_links + other._all_links if nodes and (self.links or other.links) else ()
        return Preference(self.weights + other.weights, other.kl_scale, nodes, links)

    @property
    def _all_links(self) -> tuple[Link | None, ...]:
        return self.links or (None,) * len(self.nodes)

    def loaders_of_nodes(self, loaders: Slots, names: Sequence[str]) -> Slots:
        """The loader of each weight node, where one is bypassed or muted; see `slots.loaders_of_nodes`."""
        return loaders_of_nodes(loaders, names, self.nodes, self._all_links)

    def arranged(self, loaders: Slots, names: Sequence[str]) -> Preference:
        """Match the weights of nodes to the adapters in the loaders' slots (`slots.arrange_weights`).

        Returns:
            One weight per adapter. A preference whose weights are one per adapter already is returned as it is.

        Raises:
            ValueError: an adapter has no weight, or a node without a loader has a weight above 0.
        """
        if not self.nodes:
            return self
        own = self.loaders_of_nodes(loaders, names)
        return Preference(arrange_weights(self.weights, self.nodes, own, names), self.kl_scale)

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """``{"weights": [...], "kl_scale": ...}`` with the weights over the given adapters, sum 1."""
        return {"weights": [round(weight, 6) for weight in self.normalised(names)], "kl_scale": self.kl_scale}

    def normalised(self, names: Sequence[str]) -> tuple[float, ...]:
        """Compute the weights over the given adapters, with sum 1.

        Args:
            names: the adapters' names, in order, for error messages.

        Returns:
            One weight per adapter, float[m], sum 1.

        Raises:
            ValueError: there is no adapter, fewer weights than adapters, a weight above 0 for a missing adapter, or no
                weight above 0.
        """
        if not names:
            raise ValueError("There is no adapter to blend: choose at least one LoRA in Load Reward LoRAs.")
        if len(self.weights) < len(names):
            raise ValueError(
                f"{len(self.weights)} weights for {len(names)} adapters ({', '.join(names)}): give every adapter a weight; "
                "chain a second Preference Weights for more than eight."
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
        """Compute the adapters' coefficients in the affine sum. The base model takes ``1 - sum``.

        ``c_i = kl_scale * w_i * alpha_i / sum_j w_j alpha_j`` with the KL weights alpha that the adapters were trained with
        (`kl_weights.kl_weight_factors`). Where all are equal or unknown this is ``kl_scale * w_i``. The sum is the KL scale.

        Args:
            names: the adapters' names, in order.
            kl_weights: the KL weight alpha (reward units per nat) of every adapter, None where it is unknown; an empty
                sequence means that all are unknown.

        Returns:
            float[m].

        Raises:
            ValueError: as `normalised`; or a KL weight is not a finite number above 0.
        """
        weights = self.normalised(names)
        factors = kl_weight_factors(weights, kl_weights or (None,) * len(weights))
        return tuple(self.kl_scale * weight * factor for weight, factor in zip(weights, factors, strict=True))


@dataclass(frozen=True)
class PreferenceSchedule:
    """A preference that moves to another one over a part of the run.

    The coefficients move, ``c = (1 - f) c_start + f c_end`` (see `schedules.Interpolated`), so that each end is what its
    preference alone would be.

    Args:
        start: until ``start_at``.
        end: from ``end_at`` on.
        curve: how f goes from 0 to 1: one of `schedules.CURVES`.
        start_at: progress of the run, 0 its first step and 1 its last.
        end_at: progress, not before ``start_at``.

    Raises:
        ValueError: another curve, or a progress outside 0 to 1 or in the wrong order.
    """

    start: AnyPreference
    end: AnyPreference
    curve: str = "linear"
    start_at: float = 0.0
    end_at: float = 1.0

    def __post_init__(self) -> None:
        if self.curve not in CURVES:
            raise ValueError(f"curve is {self.curve!r}: choose one of {', '.join(CURVES)}.")
        if not 0 <= self.start_at <= self.end_at <= 1:
            raise ValueError(
                f"The preference moves from {self.start_at} to {self.end_at} of the run: both must be from 0 to 1, and the "
                "start not after the end."
            )

    @property
    def parts(self) -> tuple[Preference, ...]:
        """Both ends' parts."""
        return (*self.start.parts, *self.end.parts)

    def coefficients(self, names: Sequence[str], kl_weights: Sequence[float | None] = ()) -> CoefficientSchedule:
        """The moving coefficients; errors as `Preference.coefficients`."""
        start, end = (preference.coefficients(names, kl_weights) for preference in (self.start, self.end))
        return Interpolated(start, end, self.curve, self.start_at, self.end_at)

    def at_kl_scale(self, kl_scale: float) -> PreferenceSchedule:
        """The same weights at another distance from the base model."""
        return replace(self, start=self.start.at_kl_scale(kl_scale), end=self.end.at_kl_scale(kl_scale))

    def arranged(self, loaders: Slots, names: Sequence[str]) -> PreferenceSchedule:
        """Both ends with one weight per adapter; errors as `Preference.arranged`."""
        return replace(self, start=self.start.arranged(loaders, names), end=self.end.arranged(loaders, names))

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """``{"start": {...}, "end": {...}, "curve": ..., "start_percent": ..., "end_percent": ...}``."""
        ends = {"start": self.start.described(names), "end": self.end.described(names)}
        return ends | {"curve": self.curve, "start_percent": self.start_at, "end_percent": self.end_at}

    def followed_by(self, other: Preference) -> NoReturn:  # noqa: ARG002  every other preference is refused
        """Always raises ValueError."""
        raise ValueError(f"A preference schedule {_CHAIN}")


@dataclass(frozen=True, eq=False)
class RegionalPreference:
    """One preference inside a mask and another outside; the mask's greys mix their coefficients (`schedules.Regional`).

    Args:
        outside: where the mask is 0; may itself be regional.
        inside: where it is 1.
        mask: float[M, h, w] in [0, 1], at any size; image i has the mask of index ``i mod M``.
        feather: over how many of the mask's pixels its edge is softened; 0 leaves it as it is.

    Raises:
        ValueError: the mask has another shape or values outside 0 to 1, or the feather is negative.
    """

    outside: AnyPreference
    inside: AnyPreference
    mask: Tensor = field(repr=False)
    feather: int = 0

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.numel() == 0:
            raise ValueError(f"The mask has shape {list(self.mask.shape)}: it must be masks x height x width.")
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            low, high = torch.aminmax(self.mask)
            raise ValueError(f"The mask's values go from {float(low):g} to {float(high):g}: they must be from 0 to 1.")
        if self.feather < 0:
            raise ValueError(f"feather is {self.feather}: it must be 0 or a number of pixels.")

    @property
    def parts(self) -> tuple[Preference, ...]:
        """Both sides' parts."""
        return (*self.outside.parts, *self.inside.parts)

    def coefficients(self, names: Sequence[str], kl_weights: Sequence[float | None] = ()) -> CoefficientSchedule:
        """The coefficients of each latent pixel; errors as `Preference.coefficients`."""
        outside, inside = (preference.coefficients(names, kl_weights) for preference in (self.outside, self.inside))
        return Regional(outside, inside, feather(self.mask.float().cpu(), self.feather))

    def at_kl_scale(self, kl_scale: float) -> RegionalPreference:
        """The same weights at another distance from the base model."""
        return replace(self, outside=self.outside.at_kl_scale(kl_scale), inside=self.inside.at_kl_scale(kl_scale))

    def arranged(self, loaders: Slots, names: Sequence[str]) -> RegionalPreference:
        """Both sides with one weight per adapter; errors as `Preference.arranged`."""
        return replace(self, outside=self.outside.arranged(loaders, names), inside=self.inside.arranged(loaders, names))

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """``{"outside": {...}, "inside": {...}, "feather": ...}``."""
        return {
            "outside": self.outside.described(names),
            "inside": self.inside.described(names),
            "feather": self.feather,
        }

    def followed_by(self, other: Preference) -> NoReturn:  # noqa: ARG002  every other preference is refused
        """Always raises ValueError."""
        raise ValueError(f"A regional preference {_CHAIN}")


_CHAIN = (
    "cannot be continued by more weights: chain the Preference Weights first, and connect the chains to the schedule or the "
    "region."
)
