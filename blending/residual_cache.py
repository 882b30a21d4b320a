"""What earlier steps of a run leave for later ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .plans import Extrapolation

Made = tuple[Tensor, Tensor]
"""float[N, C, ...] of one conditioning, and the noise levels it was made at, float[N]."""


class ResidualCache:
    """A tensor of each conditioning from each of the last two steps that kept one, and the noise levels they were made at.

    The host may split a step's conditionings over model calls in another way at every step, so each is kept by itself.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[int, Made]] = {}  # by step, in order

    def store(self, keys: Sequence[Hashable], kept: Tensor, sigma: Tensor, step: int) -> None:
        """Keep a call's tensor, in place of one of the same step, beside that of the step before it.

        Args:
            keys: its conditionings.
            kept: float[N, C, ...], N = conditionings * images, the images of a conditioning together.
            sigma: noise levels, float[N], above 0.
            step: the denoising step; a sampler may evaluate one several times.
        """
        for key, part, level in zip(keys, kept.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            made = self._of.setdefault(key, {})
            if any(later > step for later in made):  # the sampler went back (restarts): nothing led up to this
                made.clear()
            made[step] = part, level
            if len(made) > 2:
                del made[min(made)]

    def extrapolate(self, keys: Sequence[Hashable], prediction: Tensor, sigma: Tensor, how: Extrapolation) -> Tensor:
        """A prediction moved by what was kept.

        Args:
            keys: the call's conditionings; one of which nothing was kept, or for another shape, is not moved.
            prediction: float[N, C, ...].
            sigma: noise levels, float[N].
            how: what was kept is carried on to these noise levels.

        Returns:
            float[N, C, ...].
        """
        parts: list[Tensor] = []
        for key, part, level in zip(keys, prediction.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            made = [one for one in self._of.get(key, {}).values() if one[0].shape == part.shape]
            if made:
                kept, kept_level = made[-1]
                if len(made) > 1:
                    kept = kept + how.ahead * (kept - _faded(made[0], kept_level, how.power))
                part = part + _faded((kept, kept_level), level, how.power)
            parts.append(part)
        return torch.cat(parts)


def _faded(made: Made, level: Tensor, power: float) -> Tensor:
    kept, kept_level = made
    factor = (level / kept_level) ** power
    return kept * factor.to(kept).view(-1, *[1] * (kept.ndim - 1))
