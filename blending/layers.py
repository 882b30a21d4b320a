"""A network's layers as adapters see them: how a layer applies a weight to its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Layer:
    """How a layer applies a weight.

    Args:
        apply: ``(x, weight) -> output`` as the layer applies its own weight, without the bias. The weight may have other
            numbers of inputs and outputs than the layer's.
        channels: the dimension of the output's channels: -1, or 1 for convolutions and group normalisation.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    channels: int


def own_layer(module: nn.Module) -> nn.Module:
    """Return the layer itself, where peft has wrapped it for a loaded LoRA."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def layer_of(module: nn.Module, name: str) -> Layer:
    """Return how a layer applies a weight.

    Args:
        module: Linear, convolution (also grouped), embedding, or layer, group or RMS normalisation.
        name: for the message.

    Raises:
        ValueError: a module of another kind, or a transposed convolution.
    """
    module = own_layer(module)
    if hasattr(module, "kernel_size") and not getattr(module, "transposed", False):
        # The layer's own padding mode, stride and dilation, also where another extension has changed them.
        convolve: Any = module._conv_forward
        return Layer(lambda x, weight: convolve(x, weight, None), 1)
    if hasattr(module, "in_features"):
        return Layer(functional.linear, -1)
    if isinstance(module, nn.Embedding):
        return Layer(lambda x, weight: functional.embedding(x, weight, module.padding_idx), -1)
    normalisation = _normalisation(module)
    if normalisation is not None:
        return normalisation
    raise ValueError(f"Layer {name!r} is a {type(module).__name__}: only Linear and convolution layers can be blended.")


def _normalisation(module: nn.Module) -> Layer | None:
    """A normalisation's output is linear in its weight, so a difference is applied like a weight."""
    if isinstance(module, nn.GroupNorm):
        return Layer(lambda x, weight: functional.group_norm(x, module.num_groups, weight, None, module.eps), 1)
    if isinstance(module, nn.LayerNorm):
        shape = list(module.normalized_shape)
        return Layer(lambda x, weight: functional.layer_norm(x, shape, weight, None, module.eps), -1)
    if isinstance(module, nn.RMSNorm):
        shape = list(module.normalized_shape)
        return Layer(lambda x, weight: functional.rms_norm(x, shape, weight, module.eps), -1)
    return None


def along_channels(layer: Layer, values: Tensor, y: Tensor) -> Tensor:
    """View one value per output channel so that it broadcasts against a layer's output."""
    return values if layer.channels == -1 else values.reshape(-1, *[1] * (y.ndim - 2))


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """Find a layer by its name, also inside a wrapper module that passes attribute access on.

    Raises:
        ValueError: there is no such layer.
    """
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"The model has no layer {name!r}: the adapter is for another architecture.") from error


def projection(module: nn.Module, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function by which a layer applies a down factor: as it applies its own weight, without the bias.

    Args:
        module: the layer.
        name: for the message.

    Returns:
        ``(x, down) -> hidden``: [..., in] x [in, R] -> [..., R] for Linear, [N, in, ...] -> [N, R, ...] for a convolution.

    Raises:
        ValueError: neither Linear nor an ungrouped convolution.
    """
    module = own_layer(module)
    if hasattr(module, "kernel_size"):
        if getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False):
            raise ValueError(
                f"Layer {name!r} is a grouped or transposed convolution: its low-rank update cannot be blended."
            )
        return layer_of(module, name).apply
    if hasattr(module, "in_features"):
        return torch.matmul
    raise ValueError(f"Layer {name!r} is a {type(module).__name__}: only Linear and convolution layers can be blended.")


def layer_shape(network: nn.Module, name: str) -> tuple[int, tuple[int, ...]]:
    """Return a layer's output features and the shape of its input side, ``(in, *kernel)``. The weight is not read.

    Raises:
        ValueError: there is no such layer, or `projection` refuses it.
    """
    module: Any = own_layer(find_layer(network, name))
    projection(module, name)
    if hasattr(module, "kernel_size"):
        return module.out_channels, (module.in_channels, *module.kernel_size)
    return module.out_features, (module.in_features,)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is Linear, also where peft has wrapped it."""
    module = own_layer(module)
    return hasattr(module, "in_features") and not hasattr(module, "kernel_size")


def parent_of(name: str, modules: dict[str, nn.Module]) -> str:
    """Return the name of the module around a layer that is called itself: lists of modules are not."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(modules.get(parent), (nn.ModuleList, nn.ModuleDict)):
        parent = parent.rpartition(".")[0]
    return parent
