"""What can be told of a patch of ComfyUI's reader without the weight that it is for."""

from __future__ import annotations

from typing import Any

import comfy.weight_adapter
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


def holds_numbers(patch: Any) -> bool:
    """Whether an update is expected to change anything: no factor is all zeros."""
    return all(bool(part.float().any()) for part in patch.weights if isinstance(part, Tensor))
