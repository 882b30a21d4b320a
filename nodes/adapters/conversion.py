"""One patch of ComfyUI's reader as exact updates of a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.weight_adapter
import torch
from torch import Tensor

from ...blending.kinds import OtherShape, check_size, factored_form
from ...blending.updates import HadamardProduct, KroneckerProduct, LowRank, RotatedOutput, ScaledOutput, Update
from .base_weights import BaseWeights, Unreadable
from .differences import Updates, difference, host_difference, part_of, patched, sliced
from .patches import FACTORED, adds, dora_scale, has_other_axes, has_product_of
from .targets import Target, locate


def convert(patch: Any, target: Target, strength: float, weights: BaseWeights, magnitude: Tensor | None) -> Updates:
    """Convert one patch of the host's reader.

    Args:
        patch: a value of ``comfy.lora.load_lora``.
        target: where it belongs.
        strength: factor on the update.
        weights: of the base model; read only for the kinds that multiply them.
        magnitude: of a DoRA in PEFT's spelling, ``s = m / ||W + up @ down||`` by output, which the host does not read; or None.

    Raises:
        OtherShape: the host leaves the weight as it is: the update has another shape, or its factors do not fit together.
        ValueError: the host fails on the update, or it makes numbers that are not finite.
    """
    if not isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
        return _plain(patch, target, strength, weights)
    _check(patch, target)
    scale = magnitude if magnitude is not None else dora_scale(patch)
    plain = target.takes_factors and target.function is None
    if patch.name in FACTORED and scale is None:
        return _or_as_host(partial(_factored, patch, target, strength, weights), patch, target, strength, weights)
    if patch.name == "lora" and plain and magnitude is not None:
        return _dora(patch, target, strength, weights, magnitude, True)
    if patch.name == "lora" and plain and scale is not None and _is_by_output(scale, target.part):
        make = partial(_dora, patch, target, strength, weights, scale, False)
        return _or_as_host(make, patch, target, strength, weights)
    if patch.name == "oft" and plain and scale is None:
        return _oft(patch, target, strength, weights)
    if magnitude is not None:
        raise ValueError("its magnitude vector belongs to a layer that no DoRA trainer changes.")
    return host_difference(patch, target, strength, weights)


def _is_by_output(scale: Tensor, part: tuple[int, ...]) -> bool:
    """Whether a DoRA scale is one number for each output. The host spreads other shapes over the weight as torch does."""
    return tuple(scale.shape) == (*part[:1], *[1] * (len(part) - 1))


def _or_as_host(
    make: Callable[[], Updates], patch: Any, target: Target, strength: float, weights: BaseWeights
) -> Updates:
    """The updates in their small form; for factors of other shapes what the host makes of them.

    The host gives any product the weight's shape that has as many numbers, also for a bias or a norm.
    """
    try:
        return make()
    except Unreadable:
        raise
    except ValueError as error:
        if not has_product_of(patch, target.part):
            raise _as_left_alone(error, patch) from None
        try:
            updates = host_difference(patch, target, strength, weights)
        except Unreadable:
            raise
        except OtherShape:
            raise _as_left_alone(error, patch) from None
        except ValueError:
            raise error from None
        if not updates and strength != 0:
            raise OtherShape(str(error)) from None
        return updates


def _as_left_alone(error: ValueError, patch: Any) -> ValueError:
    """The error about factors that do not fit together: the host logs it for a LoRA and goes on, and fails on other kinds."""
    return OtherShape(str(error)) if patch.name == "lora" and patch.weights[3] is None else error


def _check(patch: Any, target: Target) -> None:
    """Refuse an update that cannot be computed, or whose layer has another shape with it."""
    if any(isinstance(part, Tensor) and not bool(torch.isfinite(part.float()).all()) for part in patch.weights):
        raise ValueError("it holds NaN or infinite numbers.")
    if patch.name == "lora" and patch.weights[3] is None:
        for part in patch.weights[:2]:
            if part.ndim < 2:
                raise OtherShape(f"a factor of it has the shape {list(part.shape)}, and ComfyUI applies matrices only.")
        scale = dora_scale(patch)
        if scale is not None and scale.ndim == 0:
            raise OtherShape("its dora_scale is a single number, and ComfyUI applies one with an axis only.")
    # A whole factor of a LoKr may be one number.
    matrices = patch.weights[2:] if patch.name == "lokr" else patch.weights
    if any(isinstance(part, Tensor) and part.ndim == 0 for part in matrices):
        raise ValueError("a factor of it is a single number.")
    shape = patch.weights[5] if patch.name == "lora" else None
    if shape is None:
        return
    if not isinstance(shape, list):
        raise ValueError("its reshape_weight is a single number, not a shape.")
    if target.offset is not None:
        raise OtherShape("ComfyUI finds no way to apply a reshape_weight to a part of a weight.")
    if tuple(shape) != target.shape:
        raise OtherShape(
            f"it changes the layer's shape from {list(target.shape)} to {shape}, as control LoRAs do, which have their effect on "
            "the MODEL before the blend, by Load LoRA."
        )


def convert_chain(entries: list[Any], key: str, network: Any, weights: BaseWeights) -> Updates:
    """Convert all patches that a chain of nodes added to one parameter, in their order.

    Args:
        entries: the host's (strength, patch, strength of the weight, offset, function).
        key: of the parameter.
        network: the host's BaseModel.
        weights: of the MODEL before the chain.

    Raises:
        ValueError: as `convert`.
    """
    if all(strength == 1 and adds(patch) for _, patch, strength, *_ in entries):
        try:
            return [
                update
                for strength, patch, _, offset, function in entries
                for update in convert(patch, locate(network, (key, offset, function)), strength, weights, None)
            ]
        except OtherShape:  # of one of them, and the host applies the others
            updates = patched(entries, locate(network, key), weights.read(key))
            if not updates:
                raise
            return updates
    return patched(entries, locate(network, key), weights.read(key))


def _plain(patch: Any, target: Target, strength: float, weights: BaseWeights) -> Updates:
    """A full difference, or a weight that replaces the model's."""
    kind, values = ("diff", patch) if len(patch) == 1 else patch
    value = values[0].float()
    if not bool(torch.isfinite(value).all()):
        raise ValueError("it holds NaN or infinite numbers.")
    if kind == "set":  # which the host copies into the weight, at any strength
        return host_difference(patch, target, strength, weights)
    if tuple(value.shape) != target.part:
        raise OtherShape(f"its update is {list(value.shape)}, but the model's part is {list(target.part)}.")
    if kind != "diff":
        raise ValueError(f"an update of kind {kind!r} is unknown here.")
    value = value * strength
    return difference(value if target.function is None else target.function(value), target)


def _factored(patch: Any, target: Target, strength: float, weights: BaseWeights) -> Updates:
    if has_other_axes(patch):
        return host_difference(patch, target, strength, weights)
    update = _checked_form(patch, target)
    if not target.takes_factors:
        return host_difference(patch, target, strength, weights)
    if isinstance(update, LowRank):
        update = LowRank(update.down, update.up * strength)
        check_size(update.up, update.down, "its alpha or its strength makes")
        return [(target.name, _placed(update, target))]
    if target.function is not None:
        return host_difference(patch, target, strength, weights)
    if isinstance(update, KroneckerProduct):
        update = KroneckerProduct(update.left * strength, update.right, update.up)
    elif isinstance(update, HadamardProduct):
        update = HadamardProduct(update.up1 * strength, update.down1, update.up2, update.down2)
    return [(target.name, sliced(update, target))]


def _checked_form(patch: Any, target: Target) -> Update:
    """The factors without a DoRA scale. They are checked before the host multiplies them out."""
    if len(target.part) < 2:
        raise OtherShape(f"it is a product of matrices, but the model's part is {list(target.part)}.")
    rows, *inputs = target.part
    weights = (*patch.weights[:4], None, None) if patch.name == "lora" else (*patch.weights[:-1], None)
    return factored_form(type(patch)(patch.loaded_keys, weights), rows, tuple(inputs))


def _dora(
    patch: Any, target: Target, strength: float, weights: BaseWeights, scale: Tensor, of_the_sum: bool
) -> Updates:
    """``W_i = s (W + up @ down)`` as a factor on the output and a low-rank pair.

    The host, as LyCORIS by default, takes ``s = m / ||W||`` by output; PEFT takes ``s = m / ||W + up @ down||``.
    """
    pair = _checked_form(patch, target)
    assert isinstance(pair, LowRank)
    if scale.numel() != target.part[0]:
        raise OtherShape(f"its scale has {scale.numel()} numbers, but the layer has {target.part[0]} outputs.")
    weight = part_of(weights.read(target.key), target).flatten(1)
    normed = weight + (pair.up @ pair.down.flatten(1)).to(weight) if of_the_sum else weight
    factor = scale.to(weight).flatten() / (normed.norm(dim=1) + torch.finfo(torch.float32).eps)
    factor = factor.cpu()
    if not bool(torch.isfinite(factor).all()):
        raise ValueError("its DoRA scale holds NaN or infinite numbers.")
    pair = LowRank(pair.down, pair.up * (strength * factor[:, None]))
    check_size(pair.up, pair.down, "its alpha, its scale or its strength makes")
    output = ScaledOutput(strength * (factor - 1), _bias(target, weights))
    return [(target.name, _placed(pair, target)), (target.name, sliced(output, target))]


def _oft(patch: Any, target: Target, strength: float, weights: BaseWeights) -> Updates:
    """``R = (1 + Q)(1 - Q)^-1`` with ``Q = B - B^T`` per block, of a norm of at most alpha. The host's strength counts twice."""
    blocks, _, alpha, _ = patch.weights
    blocks = blocks.float()
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or blocks.shape[0] * blocks.shape[1] != target.part[0]:
        raise OtherShape(f"its blocks are {list(blocks.shape)}, but the layer has {target.part[0]} outputs.")
    skew = blocks - blocks.transpose(1, 2)
    norm = float(skew.norm()) + 1e-8
    if alpha and alpha > 0 and norm > alpha:
        skew = skew * alpha / norm
    one = torch.eye(blocks.shape[1])
    rotation = (one + skew) @ torch.linalg.inv(one - skew)
    # The host sums over the rotation's first index, so its transpose acts on the outputs.
    update = RotatedOutput(strength**2 * (rotation - one).transpose(1, 2), _bias(target, weights))
    return [(target.name, sliced(update, target))]


def _bias(target: Target, weights: BaseWeights) -> Tensor | None:
    key = f"{target.name}.bias"
    if key not in weights:
        return None
    bias = weights.read(key).cpu()
    return bias if target.offset is None or target.offset[0] != 0 else bias.narrow(*target.offset)


def _placed(pair: LowRank, target: Target) -> LowRank:
    """Extend a low-rank pair to the layer's whole weight, so that all adapters of a layer are two products."""
    up, down = pair.up, pair.down
    if target.function is not None:
        up = _permuted(up, down.flatten(1), target.function)
    if target.offset is not None:
        axis, start, length = target.offset
        whole = (up if axis == 0 else down).new_zeros(
            (target.shape[0], up.shape[1]) if axis == 0 else (down.shape[0], *target.shape[1:])
        )
        whole.narrow(axis, start, length).copy_(up if axis == 0 else down)
        up, down = (whole, down) if axis == 0 else (up, whole)
    return LowRank(down, up)


def _permuted(up: Tensor, down: Tensor, function: Any) -> Tensor:
    """Apply the host's function on a weight to the up factor, if the function only permutes rows."""
    moved = function(up)
    if moved.shape != up.shape or not torch.allclose(function(up @ down), moved @ down, rtol=1e-4, atol=1e-6):
        raise ValueError("the host changes this layer's update in a way that is not low-rank.")
    return moved
