"""Adapter files for a diffusers UNet, as the side path takes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...artifacts.files import find_file
from ...blending.adapters import LowRank
from ...blending.kl_weights import parse_kl_weight
from ...blending.layers import layer_shape

logger = logging.getLogger("diffusion_blend")

Update = dict[str, list[LowRank]]
"""Layer name in the UNet -> the adapter's low-rank update of it."""

_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file that has been read, before a network is there.

    Attributes:
        name: the user's name for it.
        tensors: the file's tensors of the denoiser, by their keys.
        kl_weight: the KL weight it was trained with, reward units per nat; None where the file does not say.
        digest: SHA-256 of the file.
    """

    name: str
    tensors: dict[str, Tensor]
    kl_weight: float | None
    digest: str


@dataclass(frozen=True)
class Adapter:
    """One adapter of a network.

    Attributes:
        name: the user's name for it.
        update: layer name -> low-rank update, alpha / rank multiplied in.
        kl_weight: see `AdapterFile`.
        digest: SHA-256 of the file.
    """

    name: str
    update: Update
    kl_weight: float | None
    digest: str


def open_adapter(name: str, file: str) -> AdapterFile:
    """Read a LoRA file with kohya keys (``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``).

    Args:
        name: the user's name for it.
        file: a ``.safetensors`` file.

    Returns:
        The file; text-encoder weights are left out, and one warning says so.

    Raises:
        ValueError: it cannot be read, or is of a kind that is not low-rank.
    """
    path = find_file(file)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapter {name!r}: cannot read {path} as a whole .safetensors file ({error})") from error
    if any(key.startswith("lora_te") for key in tensors):
        logger.warning("adapter %s: the text-encoder weights in %s are not blended", name, path)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("lora_te")}
    _check_kind(name, tensors)
    return AdapterFile(name, tensors, _kl_weight(name, metadata), digest)


def fit_adapter(file: AdapterFile, unet: UNet2DConditionModel) -> Adapter:
    """Fit an adapter file to a network.

    Raises:
        ValueError: a layer of the file is not in the network, or has another shape there.
    """
    return Adapter(file.name, _updates(file.name, file.tensors, unet), file.kl_weight, file.digest)


def read_adapter(name: str, file: str, unet: UNet2DConditionModel) -> Adapter:
    """Read a LoRA file and fit it to a network; see `open_adapter` and `fit_adapter`."""
    return fit_adapter(open_adapter(name, file), unet)


def _check_kind(name: str, tensors: dict[str, Tensor]) -> None:
    strange = [key for key in tensors if not (key.startswith("lora_unet_") and key.endswith(_PARTS))]
    if strange or not tensors:
        raise ValueError(
            f"adapter {name!r} has {'the key ' + repr(strange[0]) if strange else 'no UNet weights'}: only LoRA files with "
            "kohya keys (lora_unet_<layer>.lora_down.weight, .lora_up.weight, .alpha) can be blended here, not DoRA, "
            "LoHa, LoKr or raw peft keys"
        )


def _kl_weight(name: str, metadata: dict[str, str]) -> float | None:
    try:
        return parse_kl_weight(metadata.get("diffusion_blend.kl_weight"))
    except ValueError as error:
        raise ValueError(f"adapter {name!r}: {error}") from error


def _updates(name: str, tensors: dict[str, Tensor], unet: UNet2DConditionModel) -> Update:
    scaled: dict[str, Tensor] = {}
    for key, down in tensors.items():
        layer, part = key.split(".", 1)
        up = tensors.get(f"{layer}.lora_up.weight")
        if part != "lora_down.weight":
            continue
        if up is None:
            raise ValueError(f"adapter {name!r}: {layer} has a lora_down and no lora_up; the file is not whole")
        alpha = tensors.get(f"{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        scaled[key], scaled[f"{layer}.lora_up.weight"] = down.float(), up.float() * scale
    # diffusers' own renaming: SD 1.x as it is, SDXL's input_blocks and output_blocks by the UNet's configuration.
    renamed = StableDiffusionXLPipeline.lora_state_dict(scaled, unet_config=unet.config)[0]
    factors = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in renamed.items()})
    update: Update = {}
    for key, down in factors.items():
        layer, _, part = key.partition(".lora_")
        if part == "A.weight":
            update[layer] = [_fitting(name, layer, down, factors[f"{layer}.lora_B.weight"], unet)]
    return update


def _fitting(name: str, layer: str, down: Tensor, up: Tensor, unet: UNet2DConditionModel) -> LowRank:
    try:
        out, taken = layer_shape(unet, layer)
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
    return LowRank(down, up)


def average_factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Update:
    """The "rewarded soup" of the paper's code: both factors averaged, ``(sum_i w_i B_i)(sum_i w_i A_i)``.

    That is not the average update ``sum_i w_i B_i A_i``; it is here because the paper compares with it.

    Args:
        adapters: of equal rank on every layer they share; a layer that one of them lacks counts as 0.
        weights: float[m].

    Returns:
        One adapter's update.

    Raises:
        ValueError: the ranks differ.
    """
    averaged: Update = {}
    for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.update):
        present = [
            (weight, adapter.update[layer][0])
            for weight, adapter in zip(weights, adapters, strict=True)
            if layer in adapter.update
        ]
        ranks = {pair.down.shape[0] for _, pair in present}
        if len(ranks) > 1:
            raise ValueError(
                f"factor-soup: layer {layer!r} has adapters of ranks {sorted(ranks)}; factors of different ranks cannot be "
                "averaged, so leave factor-soup out"
            )
        down = torch.stack([weight * pair.down for weight, pair in present]).sum(0)
        up = torch.stack([weight * pair.up for weight, pair in present]).sum(0)
        averaged[layer] = [LowRank(down, up)]
    return averaged
