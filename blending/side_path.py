"""The gated side path: ``y = W x + sum_i g_i delta_i(x)`` on any torch module tree, by forward hooks.

``delta_i`` is adapter i's update of the layer: ``B_i A_i x``, or one of the other kinds in `updates`. A hook adds to the base
layer's output and reads no weight, so the base may be quantised, offloaded or already patched. For a row of gates that holds
for the whole batch, only the adapters with a gate other than 0 are evaluated. The gates of low-rank updates are then
multiplied into the (small) up factor once, not into activations at every call.

ComfyUI has a similar path of its own, the "bypass" LoRA. It replaces ``module.forward`` for the life of a loaded model, with
one adapter per layer at one strength, and leaves out slices of fused layers and DoRA. The hooks here are installed for one
sampling run and then removed. They hold any number of adapters per layer, with a gate per adapter and image that changes from
call to call. So one call can serve images with different adapters, and no hook remains after the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import AdapterBank, LayerStack, Spans
from .additions import add_convolution, add_linear
from .exchange import Exchange, RowsDoNotFit, is_exchangeable
from .layer_calls import LayerCall, bind_linear, scaled_sum
from .layers import Layer, find_layer, layer_of, parent_of, projection
from .plans import Gates
from .updates import ParameterDifference, Update

Factors = tuple[Tensor, Tensor]
"""down, float[in, R] or float[R, in, *kernel], and up, float[R, out]."""


class SidePath:
    """Adapters beside a network's layers. They have no effect until a row of gates is selected.

    Args:
        bank: the adapters' factors.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self.row: tuple[Gates, ...] | None = None
        stacks, others = bank.stacks(), bank.others()
        exchanged = {name: some for name, some in others.items() if isinstance(some[0][1], ParameterDifference)}
        self._exchange = Exchange(exchanged)
        self._network: nn.Module | None = None
        self._layers = {
            name: _Layer(self, stacks.get(name), others.get(name, []))
            for name in {**stacks, **others}
            if name not in exchanged
        }
        self._handles: list[Any] = []
        self.hooked: set[int] = set()  # ids of the layers
        self._parents: dict[str, str] = {}
        self._parents_called: set[str] = set()
        self._row_gates: dict[object, Tensor] = {}

    def install(self, network: nn.Module) -> None:
        """Hook the network's layers.

        Args:
            network: the module that the bank's layer names refer to.

        Raises:
            ValueError: a layer is missing, or is of a kind that the updates cannot be applied to. No hook remains.
        """
        self._parents_called.clear()
        # One walk over the tree takes a fifth of the time of a search for every name, at the start of every run.
        modules = dict(network.named_modules(remove_duplicate=False))
        try:
            for name, layer in self._layers.items():
                module = modules[name] if name in modules else find_layer(network, name)
                layer.bind(module, name)
                self.hooked.add(id(module))
                self._handles.append(module.register_forward_hook(layer, with_kwargs=True))
            for parent in {parent_of(name, modules) for name in self._layers}:
                if parent in modules:
                    mark = partial(self._parents_called.add, parent)
                    self._handles.append(modules[parent].register_forward_pre_hook(lambda *_, mark=mark: mark()))
            self._parents = {name: parent_of(name, modules) for name in self._layers}
            self._exchange.find(network)
            self._network = network
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the hooks and release the factors."""
        try:
            while self._handles:
                self._handles[-1].remove()
                self._handles.pop()
        finally:
            for handle in self._handles:  # if the loop was interrupted; removing a hook twice has no effect
                handle.remove()
            self._handles.clear()
        for layer in self._layers.values():
            layer.prepared.clear()
        self._exchange.restore()
        self._row_gates.clear()

    @contextmanager
    def gated(self, row: tuple[Gates, ...]) -> Iterator[None]:
        """Select the gates of the network's calls inside the block.

        Args:
            row: one image's gates for the whole batch, or the gates of every image of the call, [N] of float[m].

        Raises:
            RowsDoNotFit: as `Exchange.gated`.
        """
        self.row = row if any(gate != 0 for gates in row for gate in gates) else None
        self._row_gates.clear()
        try:
            with self._exchange.gated(row):
                yield
        finally:
            self.row = None

    def exchange_bypassed(self) -> bool:
        """Exchange the weights of layers that the network reads without calling the layer, as fused kernels read norms.

        Returns:
            Whether there were any, so that the call was wrong and has to be repeated.
        """
        found = [name for name in self.bypassed() if self._layers[name].can_be_exchanged()]
        for name in found:
            layer = self._layers.pop(name)
            assert self._network is not None
            self._exchange.add(self._network, name, layer.others)
            layer.others = []
        return bool(found)

    def never_called(self) -> list[str]:
        """Return the layers that were not called since the installation."""
        return [name for name, layer in self._layers.items() if not layer.called]

    def bypassed(self) -> list[str]:
        """Return the layers that were not called although the module around them was, and that have an update other than 0."""
        return [
            name
            for name, layer in self._layers.items()
            if not layer.called and self._parents.get(name) in self._parents_called and layer.has_effect()
        ]

    def any_called(self) -> bool:
        """Return whether at least one layer was called since the installation."""
        return any(layer.called for layer in self._layers.values())

    def row_gates(self, row: tuple[Gates, ...], spans: Spans, like: Tensor) -> Tensor:
        """Return the gate of every image and rank of a layer, float[N, R], made once per call for all layers of equal spans."""
        key = (spans, like.dtype, like.device)
        gates = self._row_gates.get(key)
        if gates is None:
            values = [[g[adapter] for adapter, start, end in spans for _ in range(start, end)] for g in row]
            gates = self._row_gates[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return gates


class _Layer:
    """The hook of one layer: its stack of low-rank updates and its updates of other kinds."""

    def __init__(self, path: SidePath, stack: LayerStack | None, others: list[tuple[int, Update]]) -> None:
        self.path = path
        self.others = others
        self.prepared: dict[Gates, Factors | None] = {}
        self.project: Callable[[Tensor, Tensor], Tensor]
        self.layer: Layer
        self.called = False
        self.name = ""
        self.is_linear = False
        self.spans: Spans = ()
        if stack is not None:
            self.down, self.up, self.spans = stack.down, stack.up, stack.spans
            convolution = stack.down.ndim > 2
            self.add = add_convolution if convolution else add_linear
            self.rank_dimension = 0 if convolution else 1

    def bind(self, module: nn.Module, name: str) -> None:
        """Take the layer's operation, so that the updates are applied as the layer applies its weight."""
        self.name = name
        self.is_linear = hasattr(module, "in_features") and not hasattr(module, "kernel_size")
        if self.spans:
            self.project = projection(module, name)
        if self.others:
            self.layer = layer_of(module, name)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        self.called = True
        row = self.path.row
        if row is None:
            return None
        if self.is_linear and (kwargs or len(args) != 1):
            return self._fused(row, module, bind_linear(self.name, args, kwargs), output)
        return self._added(row, args[0] if args else kwargs["input"], output)

    def can_be_exchanged(self) -> bool:
        """Whether all updates are differences of the weight and the bias."""
        return not self.spans and is_exchangeable(self.others)

    def has_effect(self) -> bool:
        """Whether any of the updates is not 0."""
        return bool(self.others) or bool(self.up.any())

    def _fused(self, row: tuple[Gates, ...], module: nn.Module, call: LayerCall, output: Tensor) -> Tensor | None:
        if not call.fused:
            return self._added(row, call.x, output)
        # Other kinds may need the layer's own output without the residual: `forward` gives it and calls no hook.
        own = module.forward(call.x) if self.others else None
        change = self._added(row, call.x, torch.zeros_like(output), own)
        return None if change is None else scaled_sum(output, change, call.scale)

    def _added(self, row: tuple[Gates, ...], x: Tensor, output: Tensor, own: Tensor | None = None) -> Tensor | None:
        # Other kinds may need the layer's own output, and the low-rank sum may be written into it.
        change = self._change(row, x, output if own is None else own) if self.others else None
        result = None
        if self.spans:
            result = self._uniform(row[0], x, output) if len(row) == 1 else self._per_image(row, x, output)
        if change is None:
            return result
        return (output if result is None else result) + change

    def _change(self, row: tuple[Gates, ...], x: Tensor, output: Tensor) -> Tensor | None:
        """The gated sum of the updates that are not low-rank, None if every gate is 0."""
        total: Tensor | None = None
        for position, (adapter, update) in enumerate(self.others):
            gates = [gates[adapter] for gates in row]
            if not any(gates):
                continue
            update = update.like(x if x.is_floating_point() else output)
            self.others[position] = (adapter, update)
            delta = update.delta(self.layer, x, output).to(output.dtype)
            if len(row) == 1:
                delta = delta * gates[0] if gates[0] != 1 else delta
            else:
                rows = self._rows_per_image(x, len(row))
                weights = torch.tensor(gates, dtype=delta.dtype, device=delta.device).repeat_interleave(rows)
                delta = delta * weights.view(-1, *[1] * (delta.ndim - 1))
            total = delta if total is None else total + delta
        return total

    @staticmethod
    def _rows_per_image(x: Tensor, images: int) -> int:
        rows = x.shape[0]
        if rows % images:
            raise RowsDoNotFit(
                f"A layer got {rows} rows for {images} images: this model mixes images in one row, so they cannot have "
                "different adapters in one call. Use a batch size of 1."
            )
        return rows // images

    def _uniform(self, gates: Gates, x: Tensor, output: Tensor) -> Tensor | None:
        try:
            factors = self.prepared[gates]
        except KeyError:
            if len(self.prepared) > len(self.spans):  # gates that move along a schedule do not recur
                self.prepared.clear()
            factors = self.prepared[gates] = self._prepare(gates)
        if factors is None:
            return None
        down, up = factors
        if down.dtype != x.dtype or down.device != x.device:
            down, up = self.prepared[gates] = down.to(x), up.to(x)
        return self.add(output, self.project(x, down), up)

    def _prepare(self, gates: Gates) -> Factors | None:
        """The factors of the adapters in this row, with the gates in them. For one adapter of gate 1 they are views."""
        used = [(gates[adapter], start, end) for adapter, start, end in self.spans if gates[adapter] != 0]
        if not used:
            return None
        if len(used) == 1 and used[0][0] == 1:
            _, start, end = used[0]
            return self._ranks(start, end), self.up[start:end]
        up = torch.cat([self.up[start:end] * gate for gate, start, end in used])
        if len(used) == len(self.spans):
            return self.down, up
        return torch.cat([self._ranks(start, end) for _, start, end in used], dim=self.rank_dimension), up

    def _ranks(self, start: int, end: int) -> Tensor:
        return self.down.narrow(self.rank_dimension, start, end - start)

    def _per_image(self, row: tuple[Gates, ...], x: Tensor, output: Tensor) -> Tensor:
        down, up = self.down, self.up
        if down.dtype != x.dtype or down.device != x.device:
            down, up = self.down, self.up = down.to(x), up.to(x)
        rows, frames = x.shape[0], self._rows_per_image(x, len(row))
        gates = self.path.row_gates(row, self.spans, x)
        if frames != 1:
            gates = gates.repeat_interleave(frames, dim=0)  # [N, R] -> [N * frames, R]
        hidden = self.project(x, down)
        shape = [rows] + [1] * (hidden.ndim - 1)
        shape[1 if down.ndim > 2 else -1] = gates.shape[1]
        return self.add(output, hidden * gates.view(shape), up)
