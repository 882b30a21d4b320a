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

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from .adapters import AdapterBank
from .exchange import Exchange
from .gated_layer import CallGates, GatedLayer, Pause
from .layers import find_layer, parent_of
from .plans import Gates
from .updates import ParameterDifference


class SidePath:
    """Adapters beside a network's layers. They have no effect until a row of gates is selected.

    Args:
        bank: the adapters' factors.
        pause: makes the context in which the hooks run.
    """

    def __init__(self, bank: AdapterBank, pause: Pause = nullcontext) -> None:
        self._call = CallGates(pause)
        self._adapters = bank.adapters
        self._prepared: set[Gates] = set()
        stacks, others = bank.stacks(), bank.others()
        exchanged = {name: some for name, some in others.items() if isinstance(some[0][1], ParameterDifference)}
        self._exchange = Exchange(exchanged)
        self._network: nn.Module | None = None
        self._layers = {
            name: GatedLayer(self._call, stacks.get(name), others.get(name, []))
            for name in {**stacks, **others}
            if name not in exchanged
        }
        self._handles: list[Any] = []
        self.hooked: set[int] = set()  # ids of the layers
        self._parents: dict[str, str] = {}
        self._parents_called: set[str] = set()

    def install(self, network: nn.Module, modules: dict[str, nn.Module] | None = None) -> None:
        """Hook the network's layers.

        Args:
            network: the module that the bank's layer names refer to.
            modules: the network's modules by name, if they are known.

        Raises:
            ValueError: a layer is missing, or is of a kind that the updates cannot be applied to. No hook remains.
        """
        self._parents_called.clear()
        # One walk over the tree takes a fifth of the time of a search for every name.
        modules = dict(network.named_modules(remove_duplicate=False)) if modules is None else modules
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
        self._prepared.clear()
        self._exchange.restore()
        self._call.select(None)

    @contextmanager
    def gated(self, row: tuple[Gates, ...], device: torch.device | None = None) -> Iterator[None]:
        """Select the gates of the network's calls inside the block.

        Everything that the calls keep is allocated here, before them.

        Args:
            row: one image's gates for the whole batch, or the gates of every image of the call, [N] of float[m].
            device: of the calls, if the factors may be on another one.

        Raises:
            RowsDoNotFit: as `Exchange.gated`.
        """
        has_effect = any(gate != 0 for gates in row for gate in gates)
        try:
            if has_effect:
                self._call.select(row)
                self._prepare(row, device)
            with self._exchange.gated(row):
                yield
        finally:
            self._call.select(None)

    def _prepare(self, row: tuple[Gates, ...], device: torch.device | None) -> None:
        if len(row) == 1:
            if row[0] in self._prepared:
                return
            if len(self._prepared) > self._adapters:  # gates that move along a schedule do not recur
                self._prepared.clear()
                for layer in self._layers.values():
                    layer.prepared.clear()
        for layer in self._layers.values():
            layer.prepare(row, device)
        if len(row) == 1:
            self._prepared.add(row[0])

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
