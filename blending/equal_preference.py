"""The preference of a graph without any: equal weights, for however many adapters there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .preference import Preference
from .schedules import Coefficients
from .slots import Slots


@dataclass(frozen=True)
class EqualPreference:
    """Equal weights of all adapters that take part, ``w_i = 1 / m``.

    Args:
        kl_scale: the distance from the base model.
    """

    kl_scale: float = 1.0

    @property
    def parts(self) -> tuple[Preference, ...]:
        """None: no part has weights of its own."""
        return ()

    def among(self, names: Sequence[str]) -> Preference:
        """The preference for a known number of adapters."""
        return Preference((1.0,) * len(names), self.kl_scale)

    def coefficients(self, names: Sequence[str], kl_weights: Sequence[float | None] = ()) -> Coefficients:
        """``kl_scale / m`` each where the KL weights are equal; see `Preference.coefficients`."""
        return self.among(names).coefficients(names, kl_weights)

    def at_kl_scale(self, kl_scale: float) -> EqualPreference:
        """Equal weights at another distance from the base model."""
        return replace(self, kl_scale=kl_scale)

    def arranged(self, loaders: Slots, names: Sequence[str]) -> Preference:  # noqa: ARG002  empty slots have no weight
        """One weight per adapter."""
        return self.among(names)

    def followed_by(self, other: Preference) -> Preference:
        """Always raises ValueError, because only the run knows how many weights come before the other's."""
        raise ValueError(
            f"{len(other.weights)} weights cannot follow equal weights of an unknown number: connect a Preference Weights."
        )

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """As `Preference.described`."""
        return self.among(names).described(names)
