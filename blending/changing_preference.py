"""Preferences that move over the run or differ within the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .preference import AnyPreference, Preference
from .schedules import CURVES, CoefficientSchedule, Interpolated, Regional, feather
from .slots import Slots


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
