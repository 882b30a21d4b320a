"""Collective operations, so that N processes act as one with N times the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """This process among its peers.

    Gradients are averaged by hand and not by DistributedDataParallel: the same network runs with the adapter on and
    off within one backward pass, which its buckets do not expect, and an adapter's gradient is one small vector.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.count = accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.accelerator.is_main_process

    def gather(self, tensor: Tensor) -> Tensor:
        """Join every process's rows, in order of rank, on the CPU; the same on every process."""
        if self.count == 1:
            return tensor.cpu()
        gathered = self.accelerator.gather(tensor.to(self.accelerator.device).contiguous())
        assert isinstance(gathered, Tensor)
        return gathered.cpu()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank; the same on every process."""
        return [value] if self.count == 1 else gather_object([value])

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average numbers over processes."""
        stacked = torch.tensor(list(values.values()), dtype=torch.float64)[None]
        return dict(zip(values, self.gather(stacked).mean(0).tolist(), strict=True))

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
        assert isinstance(flat, Tensor)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Wait for the others."""
        self.accelerator.wait_for_everyone()
