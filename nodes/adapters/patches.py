"""What can be told of a patch of ComfyUI's reader without the weight that it is for."""

from __future__ import annotations

import math
from typing import Any

import comfy.weight_adapter
import torch
from torch import Tensor

FACTORED = ("lora", "loha", "lokr")
"""Kinds whose update is a product that does not depend on the weight."""

NEEDS_OUTPUTS = ": its dora_scale has one axis, and needs the shape [outputs, 1]"
"""Why the host fails on a DoRA scale of one axis."""


def kind_of(patch: Any) -> str:
    """Return the kind of a patch: the host's name of an adapter, or "diff" or "set"."""
    return patch[0] if isinstance(patch, tuple) and len(patch) > 1 else getattr(patch, "name", "diff")


def adds(patch: Any) -> bool:
    """Whether a patch adds a tensor that does not depend on the weight, so that patches of one weight are a sum."""
    if isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
        return patch.name in FACTORED and dora_scale(patch) is None
    return (
        isinstance(patch, tuple) and (len(patch) == 1 or patch[0] == "diff") and isinstance(patch[-1], (Tensor, tuple))
    )


def dora_scale(patch: Any) -> Tensor | None:
    """The DoRA scale of a patch, None if it has none."""
    return patch.weights[{"lora": 4, "oft": 3, "boft": 3, "glora": 5}.get(patch.name, -1)]


def has_flat_scale(patch: Any) -> bool:
    """Whether a patch is a DoRA whose scale has one axis: the host spreads it over the inputs, or fails."""
    adapter = isinstance(patch, comfy.weight_adapter.WeightAdapterBase)
    scale = dora_scale(patch) if adapter else None
    return scale is not None and scale.ndim == 1 and scale.numel() > 1


def has_other_axes(patch: Any) -> bool:
    """Whether a patch is a LoKr whose factors the host multiplies along other axes than LyCORIS.

    The host gives the first factor the axes of a kernel only where the second, stored whole, has four of them.
    """
    if getattr(patch, "name", "") != "lokr" or not isinstance(patch.weights[1], Tensor):
        return False
    left = patch.weights[0] is not None or None not in (patch.weights[3], patch.weights[4])
    return left and patch.weights[1].ndim not in (2, 4)


CORES = {"lora": (3,), "loha": (5, 6), "lokr": (7,)}
"""Where the Tucker cores are among a patch's tensors."""


def has_product_of(patch: Any, shape: tuple[int, ...]) -> bool:
    """Whether a product's factors make as many numbers as a weight has. The host gives them the weight's shape then.

    Args:
        patch: a LoRA, LoHa or LoKr.
        shape: of the weight.
    """
    cores = [core for core in (patch.weights[i] for i in CORES[patch.name]) if core is not None]
    # The product with a core larger than the weight takes more memory on the way than the weight.
    too_large = any(side > max(shape, default=1) for core in cores for side in core.shape)
    return not too_large and count_numbers(patch) == math.prod(shape)


def count_numbers(patch: Any) -> int:
    """Return how many numbers the product of a LoRA, LoHa or LoKr has, 0 for factors that are no matrices."""
    try:
        return _count(patch.name, patch.weights)
    except (IndexError, RuntimeError, AttributeError):
        return 0


def _count(name: str, weights: Any) -> int:
    if name == "lora":
        up, down, _, core, *_ = weights
        return up.shape[0] * down.shape[1:].numel() * (1 if core is None else core.shape[2:].numel())
    if name == "loha":
        a1, b1, _, a2, b2, core1, core2, _ = weights
        return torch.broadcast_shapes(_product(a1, b1, core1), _product(a2, b2, core2)).numel()
    left, right, _, a1, b1, a2, b2, core, _ = weights
    first = _product(a1, b1, None) if left is None else left.shape
    second = _product(a2, b2, core) if right is None else right.shape
    return first.numel() * second.numel()


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> torch.Size:
    """The shape of ``a @ b``, or of LyCORIS' Tucker form with a core."""
    return torch.Size((a.shape[0], b.shape[1]) if core is None else (a.shape[1], b.shape[1], *core.shape[2:]))
