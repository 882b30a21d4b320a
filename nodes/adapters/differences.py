"""Differences of weights as the host's own patching makes them, for updates that have no smaller exact form."""

from __future__ import annotations

import math
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...blending.kinds import OtherShape
from ...blending.updates import BiasDifference, Difference, ParameterDifference, Slice, Update
from .base_weights import BaseWeights
from .patches import FACTORED, NEEDS_OUTPUTS, count_numbers, dora_scale, has_flat_scale, has_product_of
from .targets import Target

Updates = list[tuple[str, Update]]
"""Names of layers (or of parameters) and their updates."""

HOST_FAILURES = (RuntimeError, IndexError, AttributeError, TypeError, ValueError, ArithmeticError)
"""What the host's patching raises on tensors that do not fit together."""


def host_difference(patch: Any, target: Target, strength: float, weights: BaseWeights) -> Updates:
    """Return the difference that the host makes by one patch.

    Args:
        patch: a value of ``comfy.lora.load_lora``.
        target: where it belongs.
        strength: factor on the update.
        weights: of the base model; read only for the kinds that multiply them.

    Raises:
        OtherShape: the host leaves a weight of this shape as it is.
        ValueError: as `patched`.
    """
    check_sizes(patch, target)
    adapter: Any = None if isinstance(patch, tuple) else patch
    multiplies = adapter is None or adapter.name not in FACTORED or dora_scale(adapter) is not None
    weight = weights.read(target.key) if multiplies else torch.zeros(target.shape)
    if adapter is not None and adapter.name == "boft" and adapter.weights[2] is None:
        # The host fails on a BOFT without alpha, which has no bound on its norm: alpha 0 says the same.
        patch = type(adapter)(adapter.loaded_keys, (*adapter.weights[:2], 0.0, *adapter.weights[3:]))
    updates, written = _patched([(strength, patch, 1.0, target.offset, target.function)], target, weight)
    if not written:
        raise _no_way(patch, target)
    return updates


def patched(entries: list[Any], target: Target, weight: Tensor) -> Updates:
    """Return the difference of a whole parameter that the host makes by some patches; nothing if there is none.

    Args:
        entries: the host's (strength, patch, strength of the weight, offset, function).
        target: the parameter.
        weight: its numbers.

    Raises:
        ValueError: the host fails, or the result has another shape or numbers that are not finite.
    """
    return _patched(entries, target, weight)[0]


def _patched(entries: list[Any], target: Target, weight: Tensor) -> tuple[Updates, bool]:
    """The difference, and whether the host has written to the weight: it logs most failures and goes on."""
    with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode does not count its writes
        changed = weight.clone()
        before = changed._version
        try:
            result = comfy.lora.calculate_weight(entries, changed, target.key)
        except HOST_FAILURES as error:
            raise ValueError(f"the host cannot apply it: {error}") from error
        written = result is not changed or changed._version != before
    if result.shape != weight.shape:
        raise ValueError(f"it changes the shape from {list(weight.shape)} to {list(result.shape)}.")
    change = (result - weight).cpu()
    if not bool(torch.isfinite(change).all()):
        raise ValueError("it makes NaN or infinite numbers.")
    whole = Target(target.key, None, None, target.module, target.layer, target.shape)
    return (difference(change, whole) if bool(change.any()) else []), written


def check_sizes(patch: Any, target: Target) -> None:
    """Refuse tensors that make more numbers than the weight has, before the host multiplies them.

    Raises:
        OtherShape: they do, so that the host would leave the weight as it is.
    """
    part = target.part
    if isinstance(patch, tuple):
        if patch[0] == "set" and (patch[1][0].ndim > len(part) or not _spreads(patch[1][0], part)):
            raise OtherShape(
                f"it replaces a weight of {list(patch[1][0].shape)}, but the model's part is {list(part)}."
            )
        return
    if patch.name in FACTORED and not has_product_of(patch, part):
        raise OtherShape(f"its factors make {count_numbers(patch)} numbers, but the model's part is {list(part)}.")
    if patch.name == "glora":
        most = max(math.prod(part[:1]), math.prod(part[1:]))
        if any(max(factor.shape[0], factor.shape[1:].numel()) > most for factor in patch.weights[:4]):
            raise OtherShape(f"its factors are larger than the model's part, {list(part)}.")
    scales = [dora_scale(patch), patch.weights[1] if patch.name == "boft" else None]
    if any(scale is not None and not _spreads(scale, part) for scale in scales):
        raise _no_way(patch, target)


def _spreads(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether torch spreads a tensor over a weight without more numbers than the weight has."""
    sizes = zip(reversed(tensor.shape), (*reversed(shape), *[1] * tensor.ndim), strict=False)
    return all(one in (1, other) for one, other in sizes)


def _no_way(patch: Any, target: Target) -> OtherShape:
    why = NEEDS_OUTPUTS if has_flat_scale(patch) else ""
    return OtherShape(f"ComfyUI finds no way to apply it to a weight of {list(target.part)}{why}.")


def difference(value: Tensor, target: Target) -> Updates:
    """Return a difference of a parameter, or of its slice, as an update of the layer, or of the parameter if it has none."""
    if target.layer is None or (target.is_bias and target.offset is not None):
        return [(target.key, ParameterDifference(_padded(value, target)))]
    if target.is_bias:
        return [(target.name, BiasDifference(value.flatten()))]
    if target.offset is not None and not target.takes_factors:
        return [(target.name, Difference(_padded(value, target)))]
    return [(target.name, sliced(Difference(value), target))]


def _padded(value: Tensor, target: Target) -> Tensor:
    """A slice's difference over the whole parameter."""
    if target.offset is None:
        return value
    whole = value.new_zeros(target.shape)
    part_of(whole, target).copy_(value)
    return whole


def part_of(weight: Tensor, target: Target) -> Tensor:
    """Return the target's slice of a weight, or the whole weight."""
    return weight if target.offset is None else weight.narrow(*target.offset)


def sliced(update: Update, target: Target) -> Update:
    """Return an update of a slice as one of the layer."""
    return update if target.offset is None else Slice(update, *target.offset)
