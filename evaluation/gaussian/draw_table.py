"""Stochastic draws for very many images at once: the law of `blending.draws`, from a torch generator."""

from __future__ import annotations

import torch
from torch import Tensor

from ...blending.draws import DRAWS


def draw_table(kind: str, probabilities: list[float], steps: int, images: int, generator: torch.Generator) -> Tensor:
    """Which category each image uses at each step.

    The same law as `blending.draws.draw`, whose keyed hashes would take minutes for the 100,000s of images that a weak
    error needs: "independent" looks a uniform number up in the cumulative probabilities; "stratified" looks up
    ``(u + j) / steps``, j a random permutation of the steps.

    Args:
        kind: "independent" or "stratified".
        probabilities: float[n], sum 1.
        steps: number of steps.
        images: number of images.
        generator: the source of randomness.

    Returns:
        int64[steps, images], 0 .. n - 1.

    Raises:
        ValueError: another kind.
    """
    if kind not in DRAWS:
        raise ValueError(f"draws is {kind!r}: choose one of {', '.join(DRAWS)}.")
    edges = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)[:-1]
    points = torch.rand((steps, images), generator=generator, dtype=torch.float64)
    if kind == "stratified":
        offset = torch.rand((1, images), generator=generator, dtype=torch.float64)
        points = (points.argsort(0) + offset) / steps
    return torch.searchsorted(edges, points, right=True)
