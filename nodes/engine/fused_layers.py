"""Calls of layers that the host's fused kernels would pass by."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops

from ...blending.layer_calls import ACTIVATIONS


@contextmanager
def layers_called(hooked: Collection[int]) -> Iterator[None]:
    """Let the host call the layers with adapters as modules inside the block.

    The host's ``linear_input_act`` computes an int8 layer with the activation before it in one kernel, from the layer's weight.
    A layer with adapters takes the host's own other way: the activation, then the layer.

    Args:
        hooked: the ids of the layers with adapters.
    """
    fused: Any = getattr(comfy.ops, "linear_input_act", None)
    if fused is None:
        yield
        return

    def linear_input_act(linear: Any, x: Any, input_act: str, *args: Any, **kwargs: Any) -> Any:
        if id(linear) in hooked and input_act in ACTIVATIONS and not args and not kwargs:
            return linear(ACTIVATIONS[input_act](x))
        return fused(linear, x, input_act, *args, **kwargs)

    comfy.ops.linear_input_act = linear_input_act
    try:
        yield
    finally:
        comfy.ops.linear_input_act = fused
