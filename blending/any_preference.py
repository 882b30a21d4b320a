"""What every kind of preference can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .schedules import Coefficients, CoefficientSchedule
from .slots import Slots

if TYPE_CHECKING:
    from .preference import Preference


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
