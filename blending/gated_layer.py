"""The hook of one layer: the gated sum of its updates, added to its output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import LayerStack, Spans
from .additions import add_convolution, add_linear
from .exchange import RowsDoNotFit, is_exchangeable
from .layer_calls import LayerCall, bind_linear, scaled_sum
from .layers import Layer, is_linear, layer_of, projection
from .plans import Gates
from .updates import Update

Factors = tuple[Tensor, Tensor]
"""down, float[in, R] or float[R, in, *kernel], and up, float[R, out]."""

Pause = Callable[[], AbstractContextManager[Any]]
"""Makes a context for the allocations of a hook."""


class CallGates:
    """The gates of the network's present call, which all layers share.

    Args:
        pause: makes the context in which hooks run.
    """

    def __init__(self, pause: Pause = nullcontext) -> None:
        self.row: tuple[Gates, ...] | None = None
        self.pause = pause
        self._row_gates: dict[object, Tensor] = {}

    def select(self, row: tuple[Gates, ...] | None) -> None:
        """Take the gates of the next call, None for a call without effect of the adapters."""
        self.row = row
        self._row_gates.clear()

    def row_gates(self, row: tuple[Gates, ...], spans: Spans, like: Tensor) -> Tensor:
        """Return the gate of every image and rank of a layer, float[N, R], made once per call for all layers of equal spans."""
        key = (spans, like.dtype, like.device)
        gates = self._row_gates.get(key)
        if gates is None:
            values = [[g[adapter] for adapter, start, end in spans for _ in range(start, end)] for g in row]
            gates = self._row_gates[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return gates


class GatedLayer:
    """The hook of one layer: its stack of low-rank updates and its updates of other kinds.

    Args:
        call: the state of the network's call.
        stack: the low-rank updates of all adapters, if there are any.
        others: updates of other kinds, with their adapters.
    """

    def __init__(self, call: CallGates, stack: LayerStack | None, others: list[tuple[int, Update]]) -> None:
        self.call = call
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
        self.is_linear = is_linear(module)
        if self.spans:
            self.project = projection(module, name)
        if self.others:
            self.layer = layer_of(module, name)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        self.called = True
        row = self.call.row
        if row is None:
            return None
        with self.call.pause():
            return self._updated(row, module, args, kwargs, output)

    def _updated(
        self, row: tuple[Gates, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if self.is_linear and (kwargs or len(args) != 1):
            return self._fused(row, module, bind_linear(self.name, args, kwargs), output)
        return self._added(row, args[0] if args else kwargs["input"], output)

    def prepare(self, row: tuple[Gates, ...], device: torch.device | None) -> None:
        """Make the tensors that the calls with this row keep."""
        if not self.spans:
            return
        if device is not None and self.down.device != device:
            self.down, self.up = self.down.to(device), self.up.to(device)
        if len(row) == 1:
            if row[0] not in self.prepared:
                self.prepared[row[0]] = self._prepare(row[0])
        else:
            self.call.row_gates(row, self.spans, self.down)

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
        factors = self.prepared[gates]
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
        gates = self.call.row_gates(row, self.spans, x)
        if frames != 1:
            gates = gates.repeat_interleave(frames, dim=0)  # [N, R] -> [N * frames, R]
        hidden = self.project(x, down)
        shape = [rows] + [1] * (hidden.ndim - 1)
        shape[1 if down.ndim > 2 else -1] = gates.shape[1]
        return self.add(output, hidden * gates.view(shape), up)
