"""The denoising step for which a plan is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StepInfo:
    """One denoising step of a run.

    Args:
        index: the step, from 0; the same for every model call of one step. It may be a function, which is
            called at the first use of the index, because reading a noise level waits for a GPU.
        count: the number of steps of the run, or a function.
        seed: the run's seed.
        images: the index of each image of the batch, [B]; None where it is unknown which image is which. It may be a function.
        pixels: height and width of the latent, or a function that may raise; None where they are unknown.
    """

    def __init__(
        self,
        index: int | Callable[[], int] = 0,
        count: int | Callable[[], int] = 1,
        seed: int = 0,
        images: Sequence[int] | Callable[[], Sequence[int] | None] | None = (0,),
        pixels: tuple[int, int] | Callable[[], tuple[int, int]] | None = (1, 1),
    ) -> None:
        self._index, self._count, self._images, self._pixels = index, count, images, pixels
        self.seed = seed

    @property
    def index(self) -> int:
        """The denoising step, from 0."""
        if callable(self._index):
            self._index = self._index()
        return self._index

    @property
    def count(self) -> int:
        """The number of steps of the run."""
        if callable(self._count):
            self._count = self._count()
        return self._count

    @property
    def images(self) -> Sequence[int] | None:
        """The index of each image of the batch, [B], or None where it is unknown which image is which."""
        if callable(self._images):
            self._images = self._images()
        return self._images

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the latent.

        Raises:
            ValueError: the sampler does not know them.
        """
        if self._pixels is None:
            raise ValueError("A regional preference needs the size of the latent, which this sampler does not give.")
        if callable(self._pixels):
            self._pixels = self._pixels()
        return self._pixels

    @property
    def progress(self) -> float:
        """The share of the run that is done, ``index / (count - 1)``: 0 at the first step, 1 at the last."""
        return self.index / (self.count - 1) if self.count > 1 else 0.0
