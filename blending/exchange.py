"""Parameters that no layer's output shows alone: exchanged during a call, and always put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .plans import Gates
from .updates import BiasDifference, Difference, Update

Updates = list[tuple[int, Update]]
"""Pairs of an adapter's index and its update."""


class RowsDoNotFit(ValueError):
    """Images with different gates cannot share a call."""


class Exchange:
    """The parameters that are exchanged during a network's calls.

    Args:
        differences: name of a parameter in the network -> its updates.
    """

    def __init__(self, differences: Mapping[str, Updates]) -> None:
        self._parameters = [ExchangedParameter(name, updates) for name, updates in differences.items()]

    def find(self, network: nn.Module) -> None:
        """Find the modules that own the parameters; errors as `ExchangedParameter.find`."""
        for parameter in self._parameters:
            parameter.find(network)

    def add(self, network: nn.Module, layer: str, updates: Updates) -> None:
        """Exchange a layer's weight and bias, too.

        Args:
            network: that has the layer.
            layer: its name.
            updates: each with one difference, as `is_exchangeable` tells.
        """
        for attribute, kind in (("weight", Difference), ("bias", BiasDifference)):
            own: Updates = [(adapter, update) for adapter, update in updates if isinstance(update, kind)]
            if own:
                self._parameters.append(ExchangedParameter(f"{layer}.{attribute}", own))
                self._parameters[-1].find(network)

    @contextmanager
    def gated(self, row: tuple[Gates, ...]) -> Iterator[None]:
        """Give the parameters their values for a row of gates inside the block.

        Raises:
            RowsDoNotFit: the images have different gates for an adapter that changes one of the parameters.
        """
        try:
            for parameter in self._parameters:
                parameter.exchange(_shared_gates(row, parameter.adapters))
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the parameters themselves back. A second call has no effect."""
        for parameter in self._parameters:
            parameter.restore()


def is_exchangeable(updates: Iterable[tuple[int, Update]]) -> bool:
    """Return whether updates of a layer are differences of its weight and bias, so that they can be exchanged instead."""
    return all(isinstance(update, (Difference, BiasDifference)) for _, update in updates)


def _shared_gates(row: tuple[Gates, ...], adapters: frozenset[int]) -> Gates:
    """The gates of some adapters, which all images of a call have to share."""
    if any(gates[adapter] != row[0][adapter] for gates in row for adapter in adapters):
        raise RowsDoNotFit(
            "An adapter changes a parameter that all images of a call share, so images cannot have different adapters in one "
            "call. Use a batch size of 1."
        )
    return row[0]


class ExchangedParameter:
    """A parameter that has the value ``p + sum_i g_i (p_i - p)`` during a call.

    Args:
        name: of the parameter in the network.
        differences: pairs of an adapter's index and its difference ``p_i - p``.
    """

    def __init__(self, name: str, differences: Updates) -> None:
        self.name = name
        self.adapters = frozenset(adapter for adapter, _ in differences)
        self._differences = [(adapter, update.tensors()[0]) for adapter, update in differences]
        self._owner: nn.Module | None = None
        self._original: Any = None

    def find(self, network: nn.Module) -> None:
        """Find the module that owns the parameter.

        Raises:
            ValueError: there is no such parameter, or it is stored as integers.
        """
        path, _, attribute = self.name.rpartition(".")
        try:
            owner = network.get_submodule(path)
            parameter = getattr(owner, attribute)
        except AttributeError as error:
            raise ValueError(
                f"The model has no parameter {self.name!r}: the adapter is for another architecture."
            ) from error
        if not parameter.is_floating_point():
            raise ValueError(f"Parameter {self.name!r} is stored as integers: a change of it cannot be blended.")
        self._owner = owner

    def exchange(self, gates: Gates) -> None:
        """Give the parameter its value for a row of gates.

        Args:
            gates: float[m].
        """
        used = [(gates[adapter], difference) for adapter, difference in self._differences if gates[adapter] != 0]
        if not used or self._owner is None:
            return
        attribute = self.name.rpartition(".")[2]
        original = getattr(self._owner, attribute)
        # On the difference's device, because the network computes there and may hold another copy for an offloaded parameter.
        value = original.detach().to(used[0][1].device).float()
        for gate, difference in used:
            value = value + gate * difference.to(value).view_as(value)
        self._original = original
        # The network casts a number of 8 bits before it computes with it, so the value need not be rounded to 8 bits.
        dtype = original.dtype if original.dtype.itemsize > 1 else used[0][1].dtype
        self._set(attribute, value.to(dtype))

    def restore(self) -> None:
        """Put the parameter itself back. A second call has no effect."""
        if self._original is not None and self._owner is not None:
            original, self._original = self._original, None
            self._put(self.name.rpartition(".")[2], original)

    def _set(self, attribute: str, value: Tensor) -> None:
        assert self._owner is not None
        parameter = attribute in self._owner._parameters
        self._put(attribute, nn.Parameter(value, requires_grad=False) if parameter else value)

    def _put(self, attribute: str, value: Any) -> None:
        assert self._owner is not None
        for registry in (self._owner._parameters, self._owner._buffers):
            if attribute in registry:
                registry[attribute] = value
                return
        setattr(self._owner, attribute, value)
