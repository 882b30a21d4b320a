"""The visit of text encoders to the device: they are there only while they encode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .quantised import placed


def visiting(encoders: Sequence[Any], device: torch.device, encode: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
    """Encode with text encoders that are on the device only meanwhile, also when the encoding fails.

    Args:
        encoders: modules; None stands for one that the pipeline does not have.
        device: where they encode.
        encode: computes with the encoders.

    Returns:
        The results of ``encode``, on the CPU.
    """
    present = [encoder for encoder in encoders if encoder is not None]
    try:
        for encoder in present:
            placed(encoder, device)
        with torch.no_grad():
            return [tensor.cpu() for tensor in encode()]
    finally:
        for encoder in present:
            placed(encoder, torch.device("cpu"))
