"""Updates beside a network's layers through which a gradient passes to their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from .layer_calls import LayerCall, bind_linear, scaled_sum
from .layers import Layer, find_layer, is_linear, layer_of
from .updates import LowRank, ParameterDifference, Update

Updates = Mapping[str, Sequence[Update]]
"""Layer name -> updates of it."""


class GatedUpdates:
    """Updates beside a network's layers with a gradient to their tensors, slower than `side_path.SidePath`.

    Args:
        network: the network.
        adapters: n adapters.

    Raises:
        ValueError: a layer is not there, or an update exchanges a parameter.
    """

    def __init__(self, network: nn.Module, adapters: Sequence[Updates]) -> None:
        self.gates: tuple[float, ...] = (0.0,) * len(adapters)
        self._layers: dict[str, tuple[nn.Module, list[tuple[int, Update]]]] = {}
        for index, adapter in enumerate(adapters):
            for name, updates in adapter.items():
                if any(isinstance(update, ParameterDifference) for update in updates):
                    raise ValueError(
                        f"An adapter changes the parameter {name}, which is no layer's: it cannot be fitted."
                    )
                own = self._layers.setdefault(name, (find_layer(network, name), []))[1]
                own += [(index, update) for update in updates]

    @property
    def modules(self) -> list[nn.Module]:
        """The layers with updates."""
        return [module for module, _ in self._layers.values()]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hook the layers inside the block."""
        handles: list[Any] = []
        try:
            for name, (module, updates) in self._layers.items():
                hook = partial(self._hook, name, layer_of(module, name), updates)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, gates: tuple[float, ...]) -> Iterator[None]:
        """Set the gates inside the block."""
        before, self.gates = self.gates, gates
        try:
            yield
        finally:
            self.gates = before

    def _hook(
        self,
        name: str,
        layer: Layer,
        updates: Sequence[tuple[int, Update]],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        used = [(self.gates[index], update) for index, update in updates if self.gates[index] != 0]
        if not used:
            return None
        call = bind_linear(name, args, kwargs) if is_linear(module) else LayerCall(args[0] if args else kwargs["input"])
        own = module.forward(call.x) if call.fused else output
        return scaled_sum(output, _change(used, layer, call.x, own), call.scale)


def _change(used: Sequence[tuple[float, Update]], layer: Layer, x: Tensor, output: Tensor) -> Tensor:
    like = x if x.is_floating_point() else output
    return sum(gate * update.like(like).delta(layer, x, output) for gate, update in used).to(output.dtype)  # pyright: ignore


def trainable(pairs: Mapping[str, LowRank]) -> tuple[dict[str, list[Update]], list[Tensor]]:
    """Return copies of low-rank updates with gradient, and their factors.

    Args:
        pairs: by layer.
    """
    new = {
        name: LowRank(pair.down.float().clone().requires_grad_(True), pair.up.float().clone().requires_grad_(True))
        for name, pair in pairs.items()
    }
    return {name: [pair] for name, pair in new.items()}, [part for pair in new.values() for part in pair.tensors()]
