"""Calls of a layer that fold an activation before it, and a scaled residual after it, into one operation.

Newer versions of ComfyUI call ``linear(x, input_act=..., residual=r, residual_scale=s)`` for ``r + s * (W act(x) + b)``. An
update of the layer's weight is then ``s * delta(act(x))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

INPUTS = ("input", "input_act", "act_weight", "residual", "residual_scale")
"""The host's arguments of a Linear layer, in order."""


@dataclass(frozen=True)
class LayerCall:
    """What the weight of a layer is applied to in a call.

    Args:
        x: the input, after the folded activation.
        scale: the factor on the layer's output, a number or a tensor that broadcasts to it; None for 1.
        fused: whether something else is added to the output, or multiplied into it.
    """

    x: Tensor
    scale: Tensor | float | None = None
    fused: bool = False


def swiglu(x: Tensor) -> Tensor:
    """Compute ``silu(gate) * up`` of a tensor that holds both, gate first, [..., 2 C] -> [..., C]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute GELU by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu_tanh": gelu_tanh, "swiglu": swiglu}


def bind_linear(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
    """Read the arguments of a Linear layer's call.

    Args:
        name: the layer, for messages.
        args: positional arguments.
        kwargs: named ones.

    Raises:
        ValueError: an argument or an activation that is not known here.
    """
    if len(args) == 1 and not kwargs:
        return LayerCall(args[0])
    given = dict(zip(INPUTS, args, strict=False)) | kwargs
    unknown = sorted(set(given) - set(INPUTS)) + [f"argument {number}" for number in range(6, len(args) + 1)]
    if given.get("act_weight") is not None:
        unknown.append("act_weight")
    if unknown:
        raise ValueError(
            f"Layer {name} is called with {', '.join(unknown)}, which this version does not know, so its adapters cannot be "
            "blended. Update Diffusion Blend, or use ComfyUI's Load LoRA."
        )
    x, activation = given["input"], given.get("input_act")
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Layer {name} applies {activation!r} to its input, and only {', '.join(ACTIVATIONS)} are known here, so its "
                "adapters cannot be blended. Update Diffusion Blend, or use ComfyUI's Load LoRA."
            )
        x = ACTIVATIONS[activation](x)
    residual, scale = given.get("residual"), given.get("residual_scale")
    return LayerCall(x, None if residual is None else scale, residual is not None)


def scaled_sum(output: Tensor, change: Tensor, scale: Tensor | float | None) -> Tensor:
    """Compute ``output + scale * change``."""
    return output + change if scale is None else torch.addcmul(output, change, torch.as_tensor(scale).to(change))
