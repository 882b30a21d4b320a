"""Parameters that no layer's output shows alone: exchanged during a call, and always put back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .plans import Gates
from .updates import Update


class ExchangedParameter:
    """A parameter that has the value ``p + sum_i g_i (p_i - p)`` during a call.

    Args:
        name: of the parameter in the network.
        differences: pairs of an adapter's index and its difference ``p_i - p``.
    """

    def __init__(self, name: str, differences: list[tuple[int, Update]]) -> None:
        self.name = name
        self.adapters = frozenset(adapter for adapter, _ in differences)
        self._differences = [(adapter, update.tensors()[0]) for adapter, update in differences]
        self._owner: nn.Module | None = None
        self._original: Any = None

    def find(self, network: nn.Module) -> None:
        """Find the module that owns the parameter.

        Raises:
            ValueError: there is no such parameter, or it is quantised.
        """
        path, _, attribute = self.name.rpartition(".")
        try:
            owner = network.get_submodule(path)
            parameter = getattr(owner, attribute)
        except AttributeError as error:
            raise ValueError(
                f"The model has no parameter {self.name!r}: the adapter is for another architecture."
            ) from error
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise ValueError(f"Parameter {self.name!r} is quantised: a change of it cannot be blended.")
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
        value = original.detach().float()
        for gate, difference in used:
            value = value + gate * difference.to(value).view_as(value)
        self._original = original
        self._set(attribute, value.to(original.dtype))

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
