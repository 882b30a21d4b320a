"""How many pictures a network call makes: as many as memory takes, found by halving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from .config import SweepConfig

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("diffusion_blend")

Part = TypeVar("Part")

AUTO_UNIT = 32
"""Pictures of a unit of work where the batch is found by memory. Every process has the same units, whatever its memory."""

AUTO_CPU = 8
"""Pictures of the first call on a CPU: the system kills a process that takes too much, so nothing larger is tried."""


def unit_size(config: SweepConfig) -> int:
    """Pictures of a unit of work."""
    return AUTO_UNIT if config.batch == "auto" else config.batch


def first_call(config: SweepConfig, device: torch.device) -> int:
    """Pictures of the first network call."""
    return AUTO_CPU if config.batch == "auto" and device.type == "cpu" else unit_size(config)


class Batches:
    """The largest number of pictures at once that has not run out of memory, for each method.

    Args:
        size: to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._found: dict[str, int] = {}

    def run(self, method: str, images: range, work: Callable[[range], Part]) -> list[Part]:
        """Do a piece of work on runs of pictures that fit in memory.

        Args:
            method: needs its own amount of memory.
            images: all pictures.
            work: on a run of pictures; it is done again on a shorter one if memory runs out.

        Returns:
            The results in order.

        Raises:
            ValueError: a single picture does not fit.
        """
        results: list[Part] = []
        start = images.start
        while start < images.stop:
            part = range(start, min(start + self._found.get(method, self.size), images.stop))
            try:
                results.append(work(part))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                reason = str(error)
            else:
                start = part.stop
                continue
            # Outside of the except block, because the error's traceback holds the tensors.
            self._halve(method, len(part), reason)
        return results

    def _halve(self, method: str, tried: int, reason: str) -> None:
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        if tried == 1:
            raise ValueError(
                f"{method}: memory does not take a single picture ({reason}): set base.precision to bf16 or a smaller "
                "base.resolution in a new folder, or leave the method out"
            )
        self._found[method] = tried // 2
        logger.info("%s: %d pictures at once do not fit in memory; %d from now on", method, tried, tried // 2)


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
