"""The content of an adapter file as ComfyUI's own reader sees it: which tensors belong to which weight of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor

from .files import RewardLoRA
from .spellings import key_map

HALVES = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_B", "lora_A"),
)
"""Endings of the two factors in each naming that the host reads."""

LORA_FACTORS = (*(ending for pair in HALVES for ending in pair), "lora_mid.weight")

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
    *(".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".a1.weight", ".oft_blocks", ".diff", ".w_norm", ".set_weight"),
)
"""Endings of which a layer has one, for every kind of update."""

MAGNITUDES = (
    ".lora_magnitude_vector.default.weight",
    ".lora_magnitude_vector.weight",
    ".lora_magnitude_vector.default",
    ".lora_magnitude_vector",
    ".magnitude",
)
"""Endings of a DoRA's magnitude in PEFT (peft/tuners/lora/dora.py) and ai-toolkit, which the host does not read."""

EXTRAS = (
    "alpha",
    "dora_scale",
    "rescale",
    "reshape_weight",
    "b_norm",
    "diff_b",
    "bias_indices",
    "bias_values",
    "bias_size",
)
"""Endings of tensors that accompany an update, after a dot."""

_OTHERS = ("lokr_w2", "lokr_t2", *(name for group in GROUPS for name in group))
_ENDINGS = sorted(
    {*WHOLE, *MAGNITUDES, "_lora.down.weight", *(f".{name}" for name in (*LORA_FACTORS, *EXTRAS, *_OTHERS))}, key=len
)[::-1]
_ENDING = re.compile("(?:" + "|".join(map(re.escape, _ENDINGS)) + ")$")

HOST_FAILURES = (KeyError, IndexError, AttributeError, TypeError, RuntimeError)
"""What the host's reader raises on tensors that do not fit together."""


@dataclass(frozen=True, eq=False)
class Content:
    """An adapter file, read for one network.

    Args:
        patches: the host's targets and patches.
        magnitudes: the host's targets -> magnitude of a DoRA in PEFT's spelling.
        unused: keys that belong to no weight of the network.
        without_effect: keys of second updates of a weight, of which the host applies one.
    """

    patches: Mapping[Any, Any]
    magnitudes: Mapping[Any, Tensor]
    unused: frozenset[str]
    without_effect: tuple[str, ...] = ()


def stem(key: str) -> str:
    """Return the layer's name in a key: the key without the ending that says which tensor of the layer it is."""
    return _ENDING.sub("", key)


def read_content(adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any]) -> Content:
    """Let the host read a file.

    Args:
        adapter: the file.
        network: the host's BaseModel.
        hosts: ``comfy.lora.model_lora_keys_unet`` of the network.

    Raises:
        ValueError: the file is damaged in a part that is used: half an update, a factor that is no matrix, an alpha of several
            numbers.
    """
    tensors = _converted(adapter)
    names = key_map(network, hosts, {stem(key) for key in tensors})
    patches, used = read_patches(adapter, names)
    magnitudes = {names[stem(key)]: tensor for key, tensor in used.items() if key.endswith(MAGNITUDES)}
    unused = frozenset(tensors.keys() - used.keys())
    return Content(patches, magnitudes, unused, _without_effect(used, names, patches))


def read_patches(adapter: RewardLoRA, names: Mapping[str, Any]) -> tuple[Mapping[Any, Any], dict[str, Tensor]]:
    """Let the host read the part of a file that belongs to the named weights.

    Args:
        adapter: the file.
        names: names of layers in the file -> the host's targets.

    Returns:
        The host's patches by target, and the tensors that were used.

    Raises:
        ValueError: as `read_content`.
    """
    tensors = _converted(adapter)
    used = {key: tensor for key, tensor in tensors.items() if stem(key) in names or key in names}
    _check_complete(adapter, used)
    wanted = {stem(key) for key in used} | used.keys()
    # In the host's order, because of two updates of one weight it takes the last.
    order = {name: target for name, target in names.items() if name in wanted}
    try:
        patches = comfy.lora.load_lora(used, order, log_missing=False)
    except HOST_FAILURES as error:
        raise ValueError(f"{adapter.file}: the host cannot read it ({error}); the file is damaged.") from error
    return patches, used


def _converted(adapter: RewardLoRA) -> dict[str, Tensor]:
    try:
        return comfy.lora_convert.convert_lora(dict(adapter.tensors))
    except HOST_FAILURES as error:
        raise ValueError(f"{adapter.file}: the host cannot read it ({error}); the file is incomplete.") from error


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


def _without_effect(
    tensors: Mapping[str, Tensor], names: Mapping[str, Any], patches: Mapping[Any, Any]
) -> tuple[str, ...]:
    """The first keys of the updates that the host leaves out, because it applies only one update of a weight."""
    found: dict[Any, list[str]] = {}
    for key in tensors:
        for ending in WHOLE:
            target = names.get(key.removesuffix(ending)) if key.endswith(ending) else None
            if target is not None:
                found.setdefault(target, []).append(key)
    left_out = [
        f"{stem(key)}.{part}_a" for key in tensors for part in ("lokr_w1", "lokr_w2") if key.endswith(f".{part}")
    ]
    left_out = [key for key in left_out if key in tensors]
    for target, keys in found.items():
        patch = patches.get(target)
        parts = patch[-1] if isinstance(patch, tuple) else getattr(patch, "weights", ())
        left_out += [key for key in keys if not any(tensors[key] is part for part in parts)]
    return tuple(dict.fromkeys(left_out))
