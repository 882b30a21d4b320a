"""The distance of samples to a distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTIONS = 64


def sliced_wasserstein(first: Tensor, second: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two equally large samples in the plane.

    ``sqrt(mean_theta mean_i (sorted(x . theta)_i - sorted(y . theta)_i)^2)`` (Bonneel et al. 2015) over 64 directions
    spread evenly over the half circle; in units of x.

    Args:
        first: float[N, 2].
        second: float[N, 2].

    Raises:
        ValueError: the samples differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"Samples of shapes {list(first.shape)} and {list(second.shape)}: draw as many of each.")
    angle = torch.arange(DIRECTIONS, dtype=first.dtype) * (math.pi / DIRECTIONS)
    directions = torch.stack([angle.cos(), angle.sin()])
    difference = (first @ directions).sort(0).values - (second @ directions).sort(0).values
    return float(difference.square().mean().sqrt())
