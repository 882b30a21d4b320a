"""The parameters of a network that adapter files name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...blending.kinds import OtherShape
from ...blending.layers import Layer, layer_of, projection
from .base_weights import Unreadable


@dataclass(frozen=True)
class Target:
    """A weight of the network, or a slice of one, that a patch belongs to.

    Args:
        key: the parameter's name, relative to the host's BaseModel.
        offset: (axis, start, length) of the slice, or None.
        function: the host's function on the update (a permutation of rows), or None.
        module: the parameter's owner.
        layer: how the owner applies its weight, None if the parameter is exchanged during a call instead.
        shape: of the whole parameter.
    """

    key: str
    offset: tuple[int, int, int] | None
    function: Any
    module: nn.Module
    layer: Layer | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The layer's name; of a parameter outside of the layers, its own."""
        return self.key.rpartition(".")[0] if self.layer is not None else self.key

    @property
    def is_bias(self) -> bool:
        return self.key.endswith(".bias")

    @property
    def part(self) -> tuple[int, ...]:
        """The shape of the slice, or of the whole parameter."""
        if self.offset is None:
            return self.shape
        axis, start, length = self.offset
        if axis >= len(self.shape) or start + length > self.shape[axis]:
            raise OtherShape(f"it addresses {start}..{start + length} of a weight of {list(self.shape)}.")
        return (*self.shape[:axis], length, *self.shape[axis + 1 :])

    @property
    def takes_factors(self) -> bool:
        """Whether factors can be applied one after the other: to a Linear layer or an ungrouped convolution."""
        if self.layer is None or self.is_bias:
            return False
        try:
            projection(self.module, self.name)
        except ValueError:
            return False
        return self.offset is None or self.offset[0] == 0 or len(self.shape) == 2


class Absent(ValueError):
    """The model has no such parameter."""


def parameter_of(target: Any) -> str:
    """Return the parameter's name in a target of the host's key map."""
    return target if isinstance(target, str) else target[0]


def offset_of(target: Any) -> tuple[int, int, int] | None:
    """Return the slice (axis, start, length) in a target of the host's key map, None for the whole parameter."""
    return None if isinstance(target, str) else target[1]


def function_of(target: Any) -> Any:
    """Return the host's function on the update in a target of its key map, None if there is none."""
    return target[2] if not isinstance(target, str) and len(target) > 2 else None


def locate(network: nn.Module, target: Any) -> Target:
    """Find the parameter that a target of the host's key map names.

    Args:
        network: the host's BaseModel.
        target: a weight's name, or (name, (axis, start, length)[, function on the update]).

    Raises:
        Absent: there is none, for example a bias of a layer without bias.
        Unreadable: it is no layer's, and stored as integers.
    """
    key = parameter_of(target)
    path, _, attribute = key.rpartition(".")
    try:
        module: Any = network.get_submodule(path)
        parameter = getattr(module, attribute)
    except AttributeError as error:
        raise Absent(f"the model has no {key}.") from error
    if parameter is None:
        raise Absent(f"the model's {path} has no {attribute}.")
    layer = _layer(module, path) if attribute in ("weight", "bias") else None
    if layer is None and not parameter.is_floating_point():
        kind = str(parameter.dtype).removeprefix("torch.")
        raise Unreadable(f"its parameter has to be exchanged in every call, and this checkpoint stores it as {kind}.")
    shape = tuple(parameter.shape)
    if layer is not None and attribute == "weight":  # a quantised weight may be stored in another shape
        if hasattr(module, "kernel_size"):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        elif hasattr(module, "in_features"):
            shape = (module.out_features, module.in_features)
    return Target(key, offset_of(target), function_of(target), module, layer, shape)


def _layer(module: nn.Module, name: str) -> Layer | None:
    try:
        return layer_of(module, name)
    except ValueError:
        return None
