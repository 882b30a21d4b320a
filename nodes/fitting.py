"""Fit adapter files to a model: the host's own key maps and reader, then low-rank pairs per layer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.weight_adapter
import torch
from torch import Tensor, nn

from ..blending.adapters import AdapterBank, LowRank
from ..blending.side_path import layer_shape
from .lora_files import RewardLoRA, RewardLoRAs

logger = logging.getLogger("diffusion_blend")

TEXT_ENCODER_PREFIXES = ("lora_te", "lora_prior_te", "text_encoder", "text_model", "clip_l", "clip_g", "bundle_emb")


def fit(loras: RewardLoRAs, model: Any) -> Any:
    """The adapters' factors for a model, in a patcher of their own that the host loads and counts.

    Args:
        loras: the adapters.
        model: the host's ModelPatcher of the diffusion model. Nothing in it is changed.

    Returns:
        A ModelPatcher of an `AdapterBank` whose layer names are relative to ``model.model``; the same one for the same
        model.

    Raises:
        ValueError: an adapter does not fit this model, or is of a kind that cannot be blended; it says which and why.
    """
    network = model.model
    patcher = loras.banks.get(network)
    if patcher is None:
        key_map = comfy.lora.model_lora_keys_unet(network, {})
        updates = [low_rank_updates(adapter, network, key_map) for adapter in loras]
        bank = AdapterBank(updates, compute_dtype(network))
        patcher = comfy.model_patcher.ModelPatcher(bank, model.load_device, model.offload_device)
        loras.banks[network] = patcher
    return patcher


def compute_dtype(network: Any) -> torch.dtype:
    """The dtype the network computes in, which the factors are stored in."""
    dtype = network.manual_cast_dtype or network.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float32


def low_rank_updates(adapter: RewardLoRA, network: nn.Module, key_map: Mapping[str, Any]) -> dict[str, list[LowRank]]:
    """Every layer's low-rank update by one adapter file.

    Args:
        adapter: the file's content.
        network: the host's BaseModel.
        key_map: the host's map from LoRA keys to the network's weights.

    Returns:
        Layer name in the network -> its updates (several where the file addresses slices of a fused layer).

    Raises:
        ValueError: as `fit`.
    """
    tensors = comfy.lora_convert.convert_lora(dict(adapter.tensors))
    _check_pairs(adapter, tensors)
    patches = comfy.lora.load_lora(tensors, dict(key_map), log_missing=False)
    if not patches:
        raise ValueError(
            f"{adapter.file}: none of its {len(tensors)} weights belongs to this model's diffusion network. It is for another "
            "architecture (or for a text encoder only): choose an adapter made for this checkpoint."
        )
    updates: dict[str, list[LowRank]] = {}
    used: set[str] = set()
    for target, patch in patches.items():
        name, pair = _update(adapter, network, target, patch)
        updates.setdefault(name, []).append(pair)
        used |= patch.loaded_keys
    _check_leftovers(adapter, set(tensors) - used)
    return updates


HALVES = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_B", "lora_A"),
)
"""Endings of the two factors in the namings the host reads."""


def _check_pairs(adapter: RewardLoRA, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what the host's reader would stumble over: half a pair, alpha that is no single number."""
    for key, tensor in tensors.items():
        for have, need in (*HALVES, *((down, up) for up, down in HALVES)):
            if key.endswith(have) and key.removesuffix(have) + need not in tensors:
                raise ValueError(f"{adapter.file}: {key} has no {need} beside it; the file is incomplete.")
        if key.endswith(".alpha") and tensor.numel() != 1:
            raise ValueError(f"{adapter.file}: {key} has shape {list(tensor.shape)}; alpha is a single number.")


def _check_leftovers(adapter: RewardLoRA, leftovers: Iterable[str]) -> None:
    text_encoder = sorted(key for key in leftovers if key.startswith(TEXT_ENCODER_PREFIXES))
    unknown = sorted(set(leftovers) - set(text_encoder))
    if unknown:
        raise ValueError(
            f"{adapter.file}: {len(unknown)} of its weights do not belong to this model, for example {unknown[0]}. Nothing was "
            "applied; choose an adapter made for this checkpoint's architecture."
        )
    if text_encoder:
        logger.warning(
            "%s also holds %d text-encoder weights; they are not blended. Load them with the host's Load LoRA (strength_model 0) "
            "if you want them.",
            adapter.file,
            len(text_encoder),
        )


def _update(adapter: RewardLoRA, network: nn.Module, target: Any, patch: Any) -> tuple[str, LowRank]:
    """One patch of the host's reader as a layer name and a low-rank pair over the whole layer."""
    key, offset, function = _parts(target)
    where = f"{adapter.file}: {key}"
    if not isinstance(patch, comfy.weight_adapter.LoRAAdapter):
        kind = getattr(patch, "name", None) or f"'{patch[0]}'"
        raise ValueError(f"{where}: an update of kind {kind} is not low-rank and cannot be blended. {_MERGE}")
    up, down, alpha, mid, dora_scale, reshape = patch.weights
    if dora_scale is not None:
        raise ValueError(
            f"{where}: this is a DoRA, which needs the model's own weights and cannot be blended. {_MERGE}"
        )
    if reshape is not None:
        raise ValueError(f"{where}: this adapter changes the layer's shape and cannot be blended. {_MERGE}")
    if not key.endswith(".weight"):
        raise ValueError(f"{where}: only layers' weights can be blended, and this is another parameter. {_MERGE}")
    name = key.removesuffix(".weight")
    try:
        outputs, inputs = layer_shape(network, name)
        pair = _pair(up.float(), down.float(), None if mid is None else mid.float(), alpha, adapter.strength)
        pair = _place(pair, outputs, inputs, offset, function)
    except ValueError as error:
        raise ValueError(
            f"{where}: {error} The adapter is for another architecture, or the file is damaged."
        ) from error
    return name, pair


def _parts(target: Any) -> tuple[str, tuple[int, int, int] | None, Any]:
    """The host's target: a weight's name, or (name, (axis, start, length)[, function on the update])."""
    if isinstance(target, str):
        return target, None, None
    return target[0], target[1], target[2] if len(target) > 2 else None


_MERGE = "Load it with the host's Load LoRA before the blend (it then belongs to the base), or convert it to a LoRA."


def _pair(up: Tensor, down: Tensor, mid: Tensor | None, alpha: float | None, strength: float) -> LowRank:
    """Fold alpha, strength and a Tucker core into the factors: ``(alpha / rank) * strength * up @ core(down)``."""
    if up.ndim < 2 or down.ndim < 2 or (mid is not None and (mid.ndim < 3 or mid.shape[1] != down.shape[0])):
        shapes = [list(factor.shape) for factor in (up, down, mid) if factor is not None]
        raise ValueError(f"its factors have shapes {shapes}, which are not those of a LoRA.")
    rank = down.shape[0]
    if rank == 0:
        raise ValueError("its rank is 0.")
    up = up.flatten(1) * (strength * (1.0 if alpha is None else alpha / rank))
    if mid is not None:
        # LyCORIS' Tucker form: down [i, in, 1, 1], core [o, i, kh, kw] -> [o, in, kh, kw]
        down = torch.einsum("oi...,in->on...", mid, down.flatten(1))
    return LowRank(down, up)


def _place(
    pair: LowRank, outputs: int, inputs: tuple[int, ...], offset: tuple[int, int, int] | None, function: Any
) -> LowRank:
    """Bring a pair to the layer's whole weight: kernel shape, slice of a fused layer, the host's row permutation."""
    sides = [outputs, torch.Size(inputs).numel()]
    up, down = pair.up, pair.down.flatten(1)
    if offset is not None:
        axis, start, length = offset
        if axis not in (0, 1) or start + length > sides[axis]:
            raise ValueError(f"it addresses {start}..{start + length} of a layer of {outputs} x {list(inputs)}.")
        sides[axis] = length
    if [up.shape[0], down.shape[1]] != sides:
        raise ValueError(
            f"its update is {up.shape[0]} x {down.shape[1]}, but the layer's weight is {sides[0]} x {sides[1]}."
        )
    if function is not None:
        up = _permuted(up, down, function)
    if offset is not None:
        axis, start, length = offset
        if axis == 0:
            up = _pad(up, 0, start, outputs)
        else:
            down = _pad(down, 1, start, torch.Size(inputs).numel())
    return LowRank(down.reshape(-1, *inputs), up)


def _permuted(up: Tensor, down: Tensor, function: Any) -> Tensor:
    """Apply the host's function on a weight to the up factor, if it is one that acts on rows alone."""
    moved = function(up)
    if moved.shape != up.shape or not torch.allclose(function(up @ down), moved @ down, rtol=1e-4, atol=1e-6):
        raise ValueError("the host changes this layer's update in a way that is not low-rank.")
    return moved


def _pad(factor: Tensor, axis: int, start: int, size: int) -> Tensor:
    shape = list(factor.shape)
    shape[axis] = size
    padded = factor.new_zeros(shape)
    padded.narrow(axis, start, factor.shape[axis]).copy_(factor)
    return padded
