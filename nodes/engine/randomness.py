"""Random numbers that the network or other nodes draw inside a model call: each row of gates gets the same ones.

Token merging, HyperTile and others draw from torch's own generators at every call. With other numbers in every row, a blend would
mix the adapters' differences with the difference between two draws, and a residual would carry that difference to later steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CallRandomness:
    """The states of torch's generators at the first of several calls.

    Args:
        device: the network's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[Tensor] | None = None

    def begin(self) -> None:
        """Record the states before the first call, and restore them before each later one."""
        generators = _generators(self._device)
        if self._states is None:
            self._states = [get() for get, _ in generators]
            return
        for (_, put), state in zip(generators, self._states, strict=True):
            put(state)


def _generators(device: torch.device) -> list[tuple[Any, Any]]:
    """How to read and to write the state of the CPU's generator, and of the device's own."""
    found: list[tuple[Any, Any]] = [(torch.get_rng_state, torch.set_rng_state)]
    module: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "get_rng_state"):
        found.append((lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)))
    return found
