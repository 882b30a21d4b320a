"""Preferences: a weight per adapter and a KL scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .kl_weights import kl_weight_factors
from .schedules import Coefficients, CoefficientSchedule
from .slots import Link, Slots, arrange_weights, loaders_of_nodes

LARGEST_KL_SCALE = 1000
"""Larger KL scales give no picture, so they are mistakes."""


class AnyPreference(Protocol):
    """A PREFERENCE of the nodes: fixed, moving over the run, or different within the image."""

    @property
    def parts(self) -> tuple[Preference, ...]:
        """The fixed preferences that it consists of."""
        ...

    def coefficients(
        self, names: Sequence[str], kl_weights: Sequence[float | None] = ()
    ) -> Coefficients | CoefficientSchedule:
        """The coefficients for a planner; see `Preference.coefficients`."""
        ...

    def at_kl_scale(self, kl_scale: float) -> AnyPreference:
        """The same weights at another distance from the base model."""
        ...

    def arranged(self, loaders: Slots, names: Sequence[str]) -> AnyPreference:
        """The same preference with one weight per adapter; see `Preference.arranged`."""
        ...

    def followed_by(self, other: Preference) -> AnyPreference:
        """Append another preference's weights."""
        ...

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for people to read. Weights are in the order of the adapters' names."""
        ...


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
