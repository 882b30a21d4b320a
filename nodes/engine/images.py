"""Which image of the run each row of a model call belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .notices import notify

MOST_IMAGES = 64
"""The host's nodes number the images of a batch up to here."""

UNKNOWN = (
    "Another node calls the model with {} images of a batch of {}, and does not say which. So all images of the batch use the "
    "same adapter at a step. Use a batch size of 1 for images with draws of their own."
)


class ImageIndices:
    """The indices of a run's images.

    Args:
        given: the latent's own indices, None where they are unknown.
        noise: the run's noise, float[B, ...].
        seed: the seed of the noise.
    """

    def __init__(self, given: Sequence[int] | None, noise: Any, seed: int | None) -> None:
        self._given, self._noise, self._seed = given, noise, seed
        self._batch = int(noise.shape[0])
        self._indices: tuple[int, ...] | None = None
        self._lost = False

    @property
    def indices(self) -> tuple[int, ...]:
        """The index of every image of the batch, [B]. Without other knowledge they are 0, 1, 2, ..."""
        if self._indices is None:
            if self._given is not None and len(self._given) == self._batch:
                self._indices = tuple(self._given)
            else:
                self._indices = indices_of_noise(self._noise, self._seed) or tuple(range(self._batch))
            self._noise = None
        return self._indices

    def of_call(self, images: int, transformer_options: dict[str, Any]) -> tuple[int, ...] | None:
        """The index of each image of a model call, or None where it cannot be known.

        Args:
            images: the number of images in the call.
            transformer_options: the call's, where the host names the frames of a context window.
        """
        window = transformer_options.get("context_window")
        if getattr(window, "dim", None) == 0 and self._batch > 1:
            frames = frames_of(window)
            if len(frames) == images and max(frames) < self._batch:
                return tuple(self.indices[frame] for frame in frames)
        elif images == self._batch and not self._lost:
            return self.indices
        elif self._batch == 1:
            return self.indices * images  # tiles of one image
        if not self._lost:
            self._lost = True
            notify(UNKNOWN.format(images, self._batch))
        return None


def frames_of(window: Any) -> tuple[int, ...]:
    """The frames of a context window of the host, in the order of the call."""
    anchor = getattr(window, "causal_anchor_index", None)
    return (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)


def indices_of_noise(noise: Any, seed: int | None) -> tuple[int, ...] | None:
    """Find the indices that the host made a noise for: image i has the i-th noise of the seed.

    A MODEL does not know the indices of its latent, for instance after Latent From Batch.

    Args:
        noise: float[B, ...].
        seed: of the noise.

    Returns:
        [B], rising, or None where the noise is not the host's noise of this seed, or is in another order.
    """
    if not isinstance(noise, Tensor) or seed is None:
        return None
    found: dict[int, int] = {}
    rows = noise.cpu()
    generator = torch.Generator("cpu").manual_seed(seed)
    for index in range(MOST_IMAGES):
        expected = torch.randn((1, *rows.shape[1:]), generator=generator).to(rows.dtype)[0]
        found |= {row: index for row in range(len(rows)) if row not in found and torch.equal(rows[row], expected)}
        if len(found) == len(rows):
            indices = tuple(found[row] for row in range(len(rows)))
            return indices if list(indices) == sorted(set(indices)) else None
    return None
