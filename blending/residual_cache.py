"""Residuals that earlier steps of a run leave for later ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .plans import Extrapolation

Residual = tuple[Tensor, Tensor]
"""float[N, C, ...] of one conditioning, and its noise levels, float[N]."""


class ResidualCache:
    """The residuals of the last two steps that stored one, with their noise levels, for every conditioning.

    Conditionings are stored one by one, because the host may distribute a step's conditionings over model calls differently
    at every step.
    """

    def __init__(self) -> None:
        self._residuals: dict[Hashable, dict[int, Residual]] = {}  # by step, in order

    def store(self, keys: Sequence[Hashable], residual: Tensor, sigma: Tensor, step: int) -> None:
        """Store a call's residual. It replaces one of the same step; entries older than the previous step are dropped.

        Args:
            keys: the call's conditionings.
            residual: float[N, C, ...], N = conditionings * images, the images of a conditioning together.
            sigma: noise levels, float[N], above 0.
            step: the denoising step. A sampler may evaluate one step several times.
        """
        for key, part, level in zip(keys, residual.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            stored = self._residuals.setdefault(key, {})
            if any(later > step for later in stored):  # the sampler went back, so no earlier step led to this one
                stored.clear()
            stored[step] = part, level
            if len(stored) > 2:
                del stored[min(stored)]

    def covers(self, keys: Sequence[Hashable], shape: Sequence[int]) -> bool:
        """Return whether each of a call's conditionings has a residual of its shape.

        Args:
            keys: the call's conditionings.
            shape: of the call's prediction, [N, C, ...].
        """
        part = (shape[0] // len(keys), *shape[1:])
        return all(any(entry[0].shape == part for entry in self._residuals.get(key, {}).values()) for key in keys)

    def extrapolate(self, keys: Sequence[Hashable], prediction: Tensor, sigma: Tensor, how: Extrapolation) -> Tensor:
        """Add the extrapolated residual to a prediction.

        Args:
            keys: the call's conditionings. A conditioning without a residual of its shape is left unchanged.
            prediction: float[N, C, ...].
            sigma: noise levels of the prediction, float[N].
            how: the law of the extrapolation.

        Returns:
            float[N, C, ...].
        """
        parts: list[Tensor] = []
        for key, part, level in zip(keys, prediction.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            stored = [entry for entry in self._residuals.get(key, {}).values() if entry[0].shape == part.shape]
            if stored:
                residual, stored_level = stored[-1]
                if len(stored) > 1:
                    change = residual - _decayed(stored[0], stored_level, how.power)
                    residual = residual + how.ahead * change
                part = part + _decayed((residual, stored_level), level, how.power)
            parts.append(part)
        return torch.cat(parts)


def _decayed(entry: Residual, level: Tensor, power: float) -> Tensor:
    """Return the residual at another noise level, ``r (sigma / sigma_stored)^power``."""
    residual, stored_level = entry
    factor = (level / stored_level) ** power
    return residual * factor.to(residual).view(-1, *[1] * (residual.ndim - 1))
