"""Tensors of a device that has no float64."""

from __future__ import annotations

import torch
from torch import Tensor


class WithoutFloat64(Tensor):
    """A tensor on a device that has no float64, as Apple's GPUs."""

    @property
    def device(self) -> torch.device:
        return torch.device("mps")

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)

    def double(self) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")
