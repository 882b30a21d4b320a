"""Fitting of adapter files to a model: ComfyUI's key maps and reader, then low-rank pairs per layer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...blending.adapters import AdapterBank, LowRank
from ...blending.side_path import layer_shape
from ..host import Network, Patcher
from .files import RewardLoRA, RewardLoRAs
from .kinds import MERGE, CannotBlend, check_kind, check_size, low_rank_form

logger = logging.getLogger("diffusion_blend")

TEXT_ENCODER_PREFIXES = ("lora_te", "lora_prior_te", "text_encoder", "text_model", "clip_l", "clip_g", "bundle_emb")


def bank_patcher(loras: RewardLoRAs, model: Patcher) -> Any:
    """Build the adapters' factors for a model, in a patcher of their own that the host loads and counts.

    Args:
        loras: the adapters.
        model: the host's ModelPatcher of the diffusion model. It is not changed.

    Returns:
        A ModelPatcher of an `AdapterBank` whose layer names are relative to ``model.model``. Calls with the same model return
        the same patcher.

    Raises:
        ValueError: an adapter does not fit this model, or is of a kind that cannot be blended.
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


def compute_dtype(network: Network) -> torch.dtype:
    """Return the network's compute dtype, in which the factors are stored."""
    dtype = network.manual_cast_dtype or network.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float32


def low_rank_updates(adapter: RewardLoRA, network: nn.Module, key_map: Mapping[str, Any]) -> dict[str, list[LowRank]]:
    """Convert one adapter file to low-rank updates of layers.

    Args:
        adapter: the file's content.
        network: the host's BaseModel.
        key_map: the host's map from LoRA keys to the network's weights.

    Returns:
        Layer name in the network -> its updates (several where the file addresses slices of a fused layer).

    Raises:
        ValueError: as `bank_patcher`.
    """
    _check_complete(adapter, adapter.tensors)
    tensors = comfy.lora_convert.convert_lora(dict(adapter.tensors))
    _check_complete(adapter, tensors)  # again, under the host's names
    patches = comfy.lora.load_lora(tensors, dict(key_map), log_missing=False)
    if not patches:
        raise ValueError(
            f"{adapter.file}: none of its {len(tensors)} weights belongs to this model's diffusion network. It is for another "
            "architecture (or for a text encoder only): choose an adapter made for this checkpoint."
        )
    _check_single(adapter, tensors, key_map)
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
"""Endings of the two factors in each naming that the host reads."""

LORA_FACTORS = tuple(ending for pair in HALVES for ending in pair)

GROUPS = (
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("hada_t1", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
    ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
)
"""Endings that belong together, in the kinds whose names follow a dot."""


WHOLE = (
    *(f".{up}" for up, _ in HALVES),
    "_lora.up.weight",
    *(".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".a1.weight", ".oft_blocks", ".diff", ".set_weight"),
)
"""Endings of which a layer has one, for every kind of update."""


def _check_single(adapter: RewardLoRA, tensors: Mapping[str, Tensor], key_map: Mapping[str, Any]) -> None:
    """Refuse two updates of one layer, because the host's reader would silently drop one of them."""
    for endings in (WHOLE, (".lokr_w2", ".lokr_w2_a")):
        found: dict[Any, str] = {}
        for key in tensors:
            for ending in endings:
                target = key_map.get(key.removesuffix(ending)) if key.endswith(ending) else None
                if target is None:
                    continue
                if target in found:
                    raise ValueError(
                        f"{adapter.file}: {found[target]} and {key} are both updates of {_parts(target)[0]}: a layer has one. "
                        "If they are meant to add up, save them as two files and load both."
                    )
                found[target] = key


def _check_complete(adapter: RewardLoRA, tensors: Mapping[str, Tensor]) -> None:
    """Refuse files that break the host's reader: half an update, a factor that is no matrix, an alpha of several numbers."""
    needed = [(half, other) for pair in HALVES for half, other in (pair, pair[::-1])]
    needed += [(f".{one}", f".{other}") for group in GROUPS for one in group for other in group if one != other]
    for key, tensor in tensors.items():
        for have, need in needed:
            if key.endswith(have) and key.removesuffix(have) + need not in tensors:
                raise ValueError(f"{adapter.file}: {key} has no {need.lstrip('.')} beside it; the file is incomplete.")
        if key.endswith(LORA_FACTORS) and tensor.ndim < 2:
            raise ValueError(
                f"{adapter.file}: {key} has shape {list(tensor.shape)}; a factor of a LoRA has at least two sides. The file is "
                "damaged: fetch it again."
            )
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
    """Convert one patch of the host's reader to a layer name and a low-rank pair over the whole layer."""
    key, offset, function = _parts(target)
    where = f"{adapter.file}: {key}"
    name = key.removesuffix(".weight")
    try:
        check_kind(patch)
        if name == key:
            raise CannotBlend("only layers' weights can be blended, and this is another parameter.")
        outputs, inputs = layer_shape(network, name)
        sides = _sides(outputs, inputs, offset)
        pair = low_rank_form(patch, sides)
        pair = LowRank(pair.down, pair.up * adapter.strength)
        check_size(pair.up, pair.down, "its alpha or its strength makes")
        pair = _place(pair, sides, inputs, outputs, offset, function)
    except CannotBlend as error:
        raise ValueError(f"{where}: {error} {MERGE}") from error
    except ValueError as error:
        raise ValueError(
            f"{where}: {error} The adapter is for another architecture, or the file is damaged."
        ) from error
    return name, pair


def _parts(target: Any) -> tuple[str, tuple[int, int, int] | None, Any]:
    """Split a target of the host: a weight's name, or (name, (axis, start, length)[, function on the update])."""
    if isinstance(target, str):
        return target, None, None
    return target[0], target[1], target[2] if len(target) > 2 else None


def _sides(outputs: int, inputs: tuple[int, ...], offset: tuple[int, int, int] | None) -> tuple[int, int]:
    """Rows and columns of the weight, or of the slice of the weight, that an update belongs to."""
    sides = [outputs, torch.Size(inputs).numel()]
    if offset is not None:
        axis, start, length = offset
        if axis not in (0, 1) or start + length > sides[axis]:
            raise ValueError(f"it addresses {start}..{start + length} of a layer of {outputs} x {list(inputs)}.")
        sides[axis] = length
    return sides[0], sides[1]


def _place(
    pair: LowRank,
    sides: tuple[int, int],
    inputs: tuple[int, ...],
    outputs: int,
    offset: tuple[int, int, int] | None,
    function: Any,
) -> LowRank:
    """Extend a pair to the layer's whole weight: kernel shape, slice of a fused layer, the host's row permutation."""
    up, down = pair.up, pair.down.flatten(1)
    if (up.shape[0], down.shape[1]) != sides:
        raise ValueError(
            f"its update is {up.shape[0]} x {down.shape[1]}, but the layer's weight is {sides[0]} x {sides[1]}."
        )
    if function is not None:
        up = _permuted(up, down, function)
    if offset is not None:
        axis, start, _ = offset
        if axis == 0:
            up = _pad(up, 0, start, outputs)
        else:
            down = _pad(down, 1, start, torch.Size(inputs).numel())
    return LowRank(down.reshape(-1, *inputs), up)


def _permuted(up: Tensor, down: Tensor, function: Any) -> Tensor:
    """Apply the host's function on a weight to the up factor, if the function only permutes rows."""
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
