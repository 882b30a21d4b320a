"""Reads adapters as kohya's trainers, LyCORIS, diffusers and peft write them, and fits them to a diffusers network."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..artifacts.files import find_file
from ..blending.groups import Group, fingerprint, parse_group
from ..blending.kl_weights import parse_kl_weight
from ..blending.layers import layer_shape
from ..blending.updates import LowRank, Update
from .adapter_kinds import updates_of_kind
from .in_memory import scaling_in_memory, tensors_in_memory
from .names import TWICE, diffusers_names, layer_names
from .scaling import Scaling, read_config, scaling_of, stored_config

logger = logging.getLogger("diffusion_blend")

Updates = dict[str, list[Update]]
"""Layer name in the network -> the adapter's updates of it."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""A pipeline's text encoders, by diffusers' names."""

_TEXT = ("lora_te", *(f"{encoder}." for encoder in TEXT_ENCODERS))
_PREFIXES = ("base_model.model.", "unet.", "transformer.", "diffusion_model.")
_PART = re.compile(
    r"(?P<layer>.+?)(?:\.lora_|\.lora\.|(?P<old>_lora)\.)(?P<part>down|up|A|B)(?:\.\w+)?\.weight"
    r"|(?P<other>.+)\.(?P<factor>alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?"
    r"|(?P<dora>.+)\.(?:lora_magnitude_vector|magnitude)(?:\.default)?(?:\.weight)?"
)
"""Keys of kohya's trainers (.lora_down.), peft (.lora_A.), and diffusers before peft (.lora.down., .to_q_lora.down.), of LyCORIS
(hada_, lokr_), and of DoRA in LyCORIS' and peft's spelling."""
_OTHER_KINDS = {"oft_": "OFT", "diff": "full", "a1.weight": "GLoRA"}


@dataclass(frozen=True)
class AdapterFile:
    """An adapter that has been read, before a network is there.

    Attributes:
        name: the user's name for it.
        tensors: the denoiser's tensors, by their keys.
        kl_weight: the KL weight it was trained with, reward units per nat; None where it is unknown.
        digest: SHA-256 of the file, or of the tensors where there is no file.
        scaling: for layers without an alpha of their own.
        group: its place in a group of adapters that were trained together; None where the file names none.
        fingerprint: of all its tensors; see `groups.fingerprint`.
        baked_at: the coefficients of the adapters that it was baked from, as its header says; None where it says nothing.
        texts: the text encoders' tensors, by their keys, where they were asked for.
        text_scalings: name of a text encoder -> as ``scaling``, for its layers.
    """

    name: str
    tensors: dict[str, Tensor]
    kl_weight: float | None
    digest: str
    scaling: Scaling = field(default_factory=Scaling)
    group: Group | None = None
    fingerprint: str = ""
    baked_at: tuple[float, ...] | None = None
    texts: dict[str, Tensor] = field(default_factory=dict)
    text_scalings: Mapping[str, Scaling] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """One adapter of a network.

    Attributes:
        name: the user's name for it.
        update: layer name -> its updates, alpha / rank multiplied in.
        kl_weight: see `AdapterFile`.
        digest: see `AdapterFile`.
        group: see `AdapterFile`.
        fingerprint: see `AdapterFile`.
    """

    name: str
    update: Updates
    kl_weight: float | None
    digest: str
    group: Group | None = None
    fingerprint: str = ""


def open_adapter(name: str, source: Any, *, with_texts: bool = False) -> AdapterFile:
    """Read an adapter.

    Args:
        name: the user's name for it.
        source: a ``.safetensors`` file; a folder that peft's ``save_pretrained`` wrote; a mapping of tensors; or a peft
            model, whose first adapter is taken.
        with_texts: return the text encoders' tensors, too. Without it one warning says that they are left out.

    Returns:
        The adapter's numbers.

    Raises:
        TypeError: a mapping of other things than tensors.
        ValueError: it cannot be read, holds numbers that are not finite, or is neither LoRA nor DoRA, LoHa or LoKr.
    """
    if isinstance(source, str | Path):
        tensors, metadata, scaling, digest = _read(name, find_file(str(source)))
    else:
        tensors, metadata, scaling = tensors_in_memory(name, source), {}, scaling_in_memory(source)
        digest = hashlib.sha256(save({key: tensors[key].contiguous() for key in sorted(tensors)})).hexdigest()
    _check_numbers(_label(name, source), tensors)
    mark = fingerprint(tensors)
    texts = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_TEXT)}
    if texts and not with_texts:
        logger.warning("adapter %s: the text-encoder weights are not blended", name)
        texts = {}
    _check_kind(name, tensors)
    try:
        kl_weight, group = parse_kl_weight(metadata.get("diffusion_blend.kl_weight")), parse_group(metadata)
        text_scalings = {part: scaling_of(stored_config(metadata, (part,))) for part in TEXT_ENCODERS}
    except ValueError as error:
        raise ValueError(f"{_label(name, source)}: {error}") from error
    return AdapterFile(
        name, tensors, kl_weight, digest, scaling, group, mark, _baked_at(metadata), texts, text_scalings
    )


def _baked_at(metadata: Mapping[str, str]) -> tuple[float, ...] | None:
    try:
        adapters = json.loads(metadata["diffusion_blend.baked"])["adapters"]
        return tuple(float(adapter["coefficient"]) for adapter in adapters)
    except (KeyError, TypeError, ValueError):  # not baked, or by a tool of other customs
        return None


def _read(name: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str], Scaling, str]:
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        beside = file.parent / "adapter_config.json"
        text = beside.read_text() if file.name.startswith("adapter_model") and beside.exists() else ""
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"adapter {name!r}: cannot read {file} as a whole .safetensors file ({error})") from error
    try:
        config = read_config(text, str(beside)) if text else stored_config(metadata)
        return tensors, metadata, scaling_of(config), digest
    except ValueError as error:
        raise ValueError(f"{_label(name, file)}: {error}") from error


def _label(name: str, source: Any) -> str:
    """An adapter in a message: its name, and its file if it has one."""
    return f"adapter {name!r}" + (f" ({source})" if isinstance(source, str | Path) else "")


def _check_numbers(label: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that give no picture, or that no layer can be made of."""
    for key, tensor in tensors.items():
        if not tensor.numel():
            problem = f"is empty, of shape {list(tensor.shape)}"
        elif not bool(tensor.float().isfinite().all()):
            problem = "holds NaN or infinite numbers"
        elif key.endswith(".alpha") and tensor.numel() > 1:
            problem = f"holds {tensor.numel()} numbers, and an alpha is one"
        elif _is_factor(key) and tensor.ndim < 2:
            problem = f"has the shape {list(tensor.shape)}, and a factor has at least two dimensions"
        else:
            continue
        raise ValueError(
            f"{label}: {key!r} {problem}, so the layer cannot be blended: the file is damaged or its training went off. Take "
            "another checkpoint of it, or remove the layer from the file"
        )


def _is_factor(key: str) -> bool:
    match = _PART.fullmatch(key)
    return match is not None and match["part"] is not None


def _check_kind(name: str, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ValueError(
            f"adapter {name!r} has no UNet weights and no transformer weights: it changes only text encoders"
        )
    for key in tensors:
        if not _PART.fullmatch(key):
            kind = next((kind for part, kind in _OTHER_KINDS.items() if part in key), "an unknown kind")
            raise ValueError(
                f"adapter {name!r} has the key {key!r} ({kind}): LoRA, DoRA, LoHa and LoKr files can be blended here, "
                "as kohya's trainers, LyCORIS, diffusers and peft write them, not OFT, GLoRA or full weights"
            )


def fit_adapter(file: AdapterFile, network: nn.Module) -> Adapter:
    """Fit an adapter to a diffusers network.

    Args:
        file: see `open_adapter`.
        network: a UNet or a transformer.

    Raises:
        ValueError: a layer of the file is not in the network, has another shape there, or lacks a factor.
    """
    factors = _factors(file)
    plain = {layer: parts for layer, parts in factors.items() if set(parts) <= {"down", "up", "alpha"}}
    scaled = {layer: _scaled_pair(file, layer, parts) for layer, parts in plain.items()}
    update: Updates = {}
    others = {layer: parts for layer, parts in factors.items() if layer not in plain}
    try:
        named, further = diffusers_names(scaled, network), layer_names(list(others), network)
    except ValueError as error:
        raise ValueError(f"adapter {file.name!r}: {error}") from error
    for layer, (down, up) in named.items():
        update[layer] = [_fitting(file.name, layer, down, up, network)]
    for layer, name in further.items():
        if name in update:
            raise ValueError(f"adapter {file.name!r} has two updates of the layer {name!r}, {TWICE}")
        try:
            update[name] = updates_of_kind(others[layer], network, name, partial(file.scaling.of, layer))
        except ValueError as error:
            raise ValueError(f"adapter {file.name!r} does not fit this base in layer {layer!r}: {error}") from error
    return Adapter(file.name, update, file.kl_weight, file.digest, file.group, file.fingerprint)


def _factors(file: AdapterFile) -> dict[str, dict[str, Tensor]]:
    """Layer, as in the file without its prefix -> its tensors by part."""
    keys: dict[tuple[str, str], str] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        place = layer, part = _parse(key)
        if place in keys:
            raise ValueError(f"adapter {file.name!r}: {keys[place]!r} and {key!r} are one part of a layer, {TWICE}")
        keys[place] = key
        factors.setdefault(layer, {})[part] = tensor
    return factors


def _scaled_pair(file: AdapterFile, layer: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Down, and up with the scale in it."""
    if "up" not in parts or "down" not in parts:
        missing, there = ("lora_up", "lora_down") if "down" in parts else ("lora_down", "lora_up")
        raise ValueError(f"adapter {file.name!r}: {layer} has a {there} and no {missing}; the file is not whole")
    rank = parts["down"].shape[0]
    scale = float(parts["alpha"]) / rank if "alpha" in parts else file.scaling.of(layer, rank)
    return parts["down"].float(), parts["up"].float() * scale


def _parse(key: str) -> tuple[str, str]:
    """A key's layer, and which part of it the tensor is: down, up, alpha, magnitude, or LyCORIS' name."""
    match = _PART.fullmatch(key)
    assert match is not None  # `_check_kind`
    layer = (match["layer"] or match["other"] or match["dora"]).replace(".processor.", ".")
    for prefix in _PREFIXES:
        layer = layer.removeprefix(prefix)
    if match["old"] and layer.endswith("to_out"):
        layer += ".0"
    part = match["part"] or match["factor"] or "magnitude"
    return layer, {"A": "down", "B": "up"}.get(part, part)


def _fitting(name: str, layer: str, down: Tensor, up: Tensor, network: nn.Module) -> LowRank:
    try:
        out, taken = layer_shape(network, layer)
    except ValueError as error:
        raise ValueError(f"adapter {name!r} does not fit this base: {error}") from error
    up = up.flatten(1)  # [out, rank, 1, 1] -> [out, rank]
    if tuple(down.shape[1:]) != taken and down.flatten(1).shape[1:] == taken:
        down = down.flatten(1)  # a 1 x 1 convolution's factor on a linear layer
    if tuple(down.shape[1:]) != taken or up.shape[0] != out:
        raise ValueError(
            f"adapter {name!r} does not fit this base: layer {layer!r} takes {list(taken)} to {out}, the file's factors "
            f"take {list(down.shape[1:])} to {up.shape[0]}"
        )
    try:
        return LowRank(down, up)
    except ValueError as error:
        raise ValueError(f"adapter {name!r}, layer {layer!r}: {error}") from error


def read_adapter(name: str, source: Any, network: nn.Module) -> Adapter:
    """Read an adapter and fit it to a network; see `open_adapter` and `fit_adapter`."""
    return fit_adapter(open_adapter(name, source), network)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device
