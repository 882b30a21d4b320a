"""What earlier steps of a run leave for later ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Kept:
    """A tensor for each conditioning of a run, and the noise level it was made at.

    The host may split a step's conditionings over model calls in another way at every step, so each is kept by itself.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def keep(self, keys: Sequence[Hashable], kept: Tensor, sigma: Tensor) -> None:
        """Keep a call's tensor in place of an earlier one.

        Args:
            keys: its conditionings.
            kept: float[N, C, ...], N = conditionings * images, the images of a conditioning together.
            sigma: noise levels, float[N], above 0.
        """
        for key, part, level in zip(keys, kept.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            self._of[key] = part, level

    def recall(self, keys: Sequence[Hashable], prediction: Tensor, sigma: Tensor, power: float) -> Tensor:
        """A prediction moved by what was kept, ``prediction + (sigma / sigma_kept)^power kept``.

        Args:
            keys: the call's conditionings; one of which nothing was kept, or for another shape, is not moved.
            prediction: float[N, C, ...].
            sigma: noise levels, float[N].
            power: how fast what was kept fades.

        Returns:
            float[N, C, ...].
        """
        parts: list[Tensor] = []
        for key, part, level in zip(keys, prediction.chunk(len(keys)), sigma.chunk(len(keys)), strict=True):
            kept, kept_level = self._of.get(key, (None, level))
            if kept is None or kept.shape != part.shape:
                parts.append(part)
            else:
                factor = (level / kept_level) ** power
                parts.append(part + kept * factor.to(part).view(-1, *[1] * (part.ndim - 1)))
        return torch.cat(parts)
