"""How coefficients change over a run and across an image.

A planner's coefficients are either fixed, a tuple, or a **schedule**, a function of the step. A coefficient is a number. Where
it differs within the image, it is a tensor that broadcasts to the x0 prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .step_info import StepInfo

Coefficient = float | Tensor
"""A number, or float64[1 | B, 1, H, W], one for each latent pixel."""

Coefficients = tuple[Coefficient, ...]
"""One coefficient per adapter, [m]."""

CURVES = ("linear", "cosine", "step")


class CoefficientSchedule(Protocol):
    """Coefficients as a function of the step."""

    @property
    def uniform(self) -> bool:
        """Whether every coefficient is one number for the whole image."""
        ...

    def __call__(self, step: StepInfo) -> Coefficients: ...


def coefficients_at(coefficients: Coefficients | CoefficientSchedule, step: StepInfo) -> Coefficients:
    """Return the coefficients at a step, whether they are fixed or scheduled."""
    return coefficients(step) if callable(coefficients) else coefficients


def is_uniform(coefficients: Coefficients | CoefficientSchedule) -> bool:
    """Return whether every coefficient is one number for the whole image."""
    return not callable(coefficients) or coefficients.uniform


def curve_value(curve: str, share: float) -> float:
    """Evaluate a curve from 0 to 1.

    linear: ``s``. cosine: ``(1 - cos(pi s)) / 2``. step: 0 below ``s = 1/2``, 1 from there on.

    Args:
        curve: one of `CURVES`.
        share: s, in [0, 1].

    Raises:
        ValueError: another curve.
    """
    if curve == "linear":
        return share
    if curve == "cosine":
        return (1 - math.cos(math.pi * share)) / 2
    if curve == "step":
        return 0.0 if share < 0.5 else 1.0
    raise ValueError(f"curve is {curve!r}: choose one of {', '.join(CURVES)}.")


def interpolate(start: Coefficient, end: Coefficient, share: float | Tensor) -> Coefficient:
    """Compute ``start + share (end - start)``, exact at share 0 and 1 and where start and end are equal."""
    if isinstance(start, Tensor) or isinstance(end, Tensor) or isinstance(share, Tensor):
        parts = [torch.as_tensor(part, dtype=torch.float64) for part in (start, end, share)]
        return torch.lerp(*torch.broadcast_tensors(*parts))
    return start + share * (end - start) if share < 0.5 else end - (1 - share) * (end - start)


@dataclass(frozen=True)
class Interpolated:
    """Coefficients that move from one preference's to another's over a part of the run.

    ``c = (1 - f(s)) start + f(s) end`` with ``s = (progress - start_at) / (end_at - start_at)``, clamped to [0, 1].

    Args:
        start: c until ``start_at``.
        end: c from ``end_at`` on.
        curve: f, one of `CURVES`.
        start_at: progress of the run at which the movement starts, in [0, 1].
        end_at: progress at which it ends, in [0, 1], not before ``start_at``. Equal values make a jump.
    """

    start: Coefficients | CoefficientSchedule
    end: Coefficients | CoefficientSchedule
    curve: str = "linear"
    start_at: float = 0.0
    end_at: float = 1.0

    @property
    def uniform(self) -> bool:
        return is_uniform(self.start) and is_uniform(self.end)

    def __call__(self, step: StepInfo) -> Coefficients:
        share = self._share(step.progress)
        start, end = coefficients_at(self.start, step), coefficients_at(self.end, step)
        return tuple(interpolate(a, b, share) for a, b in zip(start, end, strict=True))

    def _share(self, progress: float) -> float:
        if self.end_at == self.start_at:
            return 0.0 if progress < self.start_at else 1.0
        moved = (progress - self.start_at) / (self.end_at - self.start_at)
        return curve_value(self.curve, min(max(moved, 0.0), 1.0))


@dataclass(frozen=True, eq=False)
class Regional:
    """One preference's coefficients inside a mask and another's outside: ``c = (1 - mask) outside + mask inside``.

    Args:
        outside: c where the mask is 0.
        inside: c where the mask is 1.
        mask: float[M, h, w] in [0, 1], of any size; image i has the mask of index ``i mod M``.
    """

    outside: Coefficients | CoefficientSchedule
    inside: Coefficients | CoefficientSchedule
    mask: Tensor = field(repr=False)

    @property
    def uniform(self) -> bool:
        return False

    def __call__(self, step: StepInfo) -> Coefficients:
        share = mask_of_images(self.mask, self._images(step), step.pixels)
        outside, inside = coefficients_at(self.outside, step), coefficients_at(self.inside, step)
        return tuple(interpolate(a, b, share) for a, b in zip(outside, inside, strict=True))

    def _images(self, step: StepInfo) -> Sequence[int]:
        if len(self.mask) == 1:
            return (0,)
        if step.images is None:
            raise ValueError(
                f"A regional preference has {len(self.mask)} masks, and another node calls the model with a part of the batch "
                "without saying which. Use one mask for all images, or a batch size of 1."
            )
        return step.images


def mask_of_images(mask: Tensor, images: Sequence[int], pixels: tuple[int, int]) -> Tensor:
    """Resize a mask to the latent's pixels.

    A finer mask is averaged over each pixel, a coarser one is interpolated linearly.

    Args:
        mask: float[M, h, w].
        images: the index of each image of the batch, [B]; image i has the mask of index ``i mod M``.
        pixels: height and width of the latent.

    Returns:
        float64[1 | B, 1, H, W]; one for all images where there is one mask.
    """
    chosen = mask if len(mask) == 1 else mask[[image % len(mask) for image in images]]
    finer = mask.shape[-2] >= pixels[0] and mask.shape[-1] >= pixels[1]
    fitted = F.interpolate(chosen.unsqueeze(1).float(), pixels, mode="area" if finer else "bilinear")
    return fitted.clamp(0, 1).double()


def feather(mask: Tensor, width: int) -> Tensor:
    """Soften a mask's edge: across a straight edge it rises linearly over ``width`` pixels, centred on the edge.

    The result is the mean over a square of ``width`` (made odd) pixels. Pixels outside the image do not count, so that a mask
    of ones, or of zeros, does not change.

    Args:
        mask: float[M, h, w].
        width: in the mask's pixels, at least 0; 0 and 1 do not change the mask.
    """
    half = width // 2
    if half == 0:
        return mask
    rows = F.avg_pool2d(mask.unsqueeze(1), (2 * half + 1, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, 2 * half + 1), 1, (0, half), count_include_pad=False).squeeze(1)
