"""Several LoRA adapters of peft on one network, added up with a gate for each adapter and image, with gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor


class GatedAdapters:
    """Multiplies each adapter's update by the gate of the image: ``y = W x + sum_i g_i B_i A_i x``.

    peft adds the updates of all active adapters. A hook on each up-projection multiplies its output, so a gate of exactly 1 or
    0 gives the same bits as the adapter alone.
    """

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        """Activate all adapters and hook their up-projections.

        Args:
            network: a diffusers network with these adapters.
            names: of the adapters, in the order of the gates.
        """
        self.gates: Tensor | None = None
        network.set_adapters(list(names))
        layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            for i, name in enumerate(names):
                layer.lora_B[name].register_forward_hook(partial(self._gated, i))

    def _gated(self, member: int, module: Any, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG002
        if self.gates is None:
            raise RuntimeError("a network with several adapters was called without gates")
        gate = self.gates[:, member].to(output)
        return output * gate.view(-1, *[1] * (output.ndim - 1))

    @contextmanager
    def opened(self, gates: Tensor | None) -> Iterator[None]:
        """Set the gates for the block.

        Args:
            gates: float[B, m], for the B images of the network's calls.
        """
        before, self.gates = self.gates, gates
        try:
            yield
        finally:
            self.gates = before
