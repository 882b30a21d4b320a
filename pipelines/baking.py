"""Bakes the soup of several adapters of a diffusers base into one LoRA file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..blending.baking import dense_difference, join_pairs, reduce_rank, with_one_alpha
from ..blending.layers import find_layer
from ..blending.plans import is_significant
from ..blending.preference import Preference
from ..blending.updates import LowRank, Update
from .adapter_files import Adapter, AdapterFile, fit_adapter, open_adapter
from .text_pairs import text_pairs

NETWORKS = ("unet", "transformer")
"""The denoiser's folder in a diffusers base."""


@dataclass
class BakedFile:
    """A baked file's updates, and the error that a reduced rank leaves.

    Attributes:
        layers: of the denoiser, by its names of layers.
        texts: of the text encoders, by the file's keys.
        is_unet: whether the denoiser is a UNet.
        metadata: the header.
        errors: layer -> relative error left.
        missing, size: sums of squares of the parts left out and of the updates.
    """

    layers: dict[str, LowRank] = field(default_factory=dict)
    texts: dict[str, LowRank] = field(default_factory=dict)
    is_unet: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: float = 0.0
    size: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of all layers together."""
        return (self.missing / self.size) ** 0.5 if self.size else 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The file's tensors, by key."""
        tensors: dict[str, Tensor] = {}
        for layer, pair in self.layers.items():
            key = f"lora_unet_{layer.replace('.', '_')}" if self.is_unet else f"transformer.{layer}"
            _write(tensors, key, pair)
        for key, pair in self.texts.items():
            _write(tensors, key, pair)
        return with_one_alpha(tensors)

    def content(self) -> bytes:
        """The bytes of the ``.safetensors`` file."""
        return save({key: tensor.contiguous() for key, tensor in self.tensors.items()}, self.metadata)


def skeleton(base: str, with_weights: bool = False) -> tuple[nn.Module, bool, bool]:
    """Return a base's denoiser, without its weights unless they are asked for.

    Args:
        base: a folder of diffusers, with ``model_index.json``.
        with_weights: read the weights, for the kinds of adapter that multiply them.

    Returns:
        The network, on the meta device if it has no weights; whether it is a UNet; whether the base has several text
        encoders.

    Raises:
        ValueError: the folder is not one of diffusers, or its network is of an unknown class.
    """
    import diffusers

    folder = Path(base)
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        part = next(name for name in NETWORKS if name in index)
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        kind = getattr(diffusers, str(index[part][1]))
    except (OSError, ValueError, StopIteration, AttributeError, IndexError, TypeError) as error:
        raise ValueError(
            f"base {base!r}: cannot read a diffusers folder with a unet or a transformer there "
            f"({error or type(error).__name__})"
        ) from error
    if with_weights:
        network = kind.from_pretrained(folder / part, use_safetensors=True)
    else:
        with torch.device("meta"):
            network = kind.from_config(config)
    return network, part == "unet", "text_encoder_2" in index


def bake_files(
    base: str, files: Sequence[str], weights: Sequence[float], kl_scale: float = 1.0, rank: int = 0
) -> BakedFile:
    """Sum adapters' updates by a preference, ``sum_i c_i up_i @ down_i`` on each layer.

    Args:
        base: see `skeleton`.
        files: LoRA files for this base.
        weights: the preference, one for each file.
        kl_scale: the KL scale.
        rank: of every layer; 0 joins the ranks, which is exact.

    Returns:
        The file. For a UNet it has kohya's keys, which ComfyUI, A1111 and diffusers read; for a transformer diffusers' keys.

    Raises:
        ValueError: a file cannot be read or does not fit, the numbers of files and weights differ, or all coefficients are 0.
    """
    if len(files) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(files)} adapters: give one for each file")
    opened = [open_adapter(Path(file).stem, file, with_texts=True) for file in files]
    network, is_unet, several = skeleton(base, with_weights=any(map(_multiplies_weights, opened)))
    adapters = [fit_adapter(file, network) for file in opened]
    names = [adapter.name for adapter in adapters]
    found = Preference(tuple(weights), kl_scale).coefficients(names, [adapter.kl_weight for adapter in adapters])
    coefficients = [float(c) for c in found]
    if not any(map(is_significant, coefficients)):
        raise ValueError(
            f"kl_scale is {kl_scale:g}: all coefficients are 0, so the file would be the base model itself"
        )
    baked = BakedFile(is_unet=is_unet)
    for layer, updates in _network_updates(adapters, coefficients).items():
        baked.layers[layer] = _reduced(baked, layer, _summed(layer, updates, network), rank)
    for layer, pairs in text_pairs(opened, coefficients, is_unet, several).items():
        baked.texts[layer] = _reduced(baked, layer, join_pairs(pairs), rank)
    baked.metadata = _metadata(files, weights, kl_scale, coefficients, rank)
    return baked


def _multiplies_weights(file: AdapterFile) -> bool:
    """Whether a file holds DoRA, which scales the base's own weights."""
    return any("dora_scale" in key or "magnitude" in key for key in file.tensors)


def _network_updates(
    adapters: Sequence[Adapter], coefficients: Sequence[float]
) -> dict[str, list[tuple[float, Update]]]:
    layers: dict[str, list[tuple[float, Update]]] = {}
    for adapter, coefficient in zip(adapters, coefficients, strict=True):
        if is_significant(coefficient):
            for layer, updates in adapter.update.items():
                layers.setdefault(layer, []).extend((coefficient, update) for update in updates)
    return layers


def _summed(layer: str, updates: Sequence[tuple[float, Update]], network: nn.Module) -> LowRank:
    """The sum of a layer's updates, exactly. Kinds that are not low-rank make a pair of the weight's full rank."""
    pairs = [(c, update) for c, update in updates if isinstance(update, LowRank)]
    if len(pairs) == len(updates):
        return join_pairs(pairs)
    weight: Any = find_layer(network, layer).weight
    parts = [c * dense_difference(update, lambda: weight.detach().float()) for c, update in updates]
    difference = torch.stack(parts).sum(0)
    return reduce_rank(difference, min(difference.flatten(1).shape))[0]


def _reduced(baked: BakedFile, layer: str, pair: LowRank, rank: int) -> LowRank:
    size = float((pair.up.double() @ pair.down.flatten(1).double()).square().sum())
    baked.size += size
    if rank == 0 or pair.down.shape[0] <= rank:
        return pair
    pair, error = reduce_rank(pair, rank)
    baked.errors[layer] = error
    baked.missing += error**2 * size
    return pair


def _write(tensors: dict[str, Tensor], key: str, pair: LowRank) -> None:
    up = pair.up.view(*pair.up.shape, *[1] * (pair.down.ndim - 2))
    if key.startswith("lora_"):
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = pair.down, up
    else:
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = pair.down, up


def _metadata(
    files: Sequence[str], weights: Sequence[float], kl_scale: float, coefficients: Sequence[float], rank: int
) -> dict[str, str]:
    adapters = [
        {"file": Path(file).name, "weight": weight, "coefficient": c}
        for file, weight, c in zip(files, weights, coefficients, strict=True)
    ]
    baked: Mapping[str, Any] = {"method": "merge", "adapters": adapters, "kl_scale": kl_scale, "rank": rank or "exact"}
    title = " + ".join(f"{Path(file).stem} {c:.3g}" for file, c in zip(files, coefficients, strict=True))
    header = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": title, "ss_network_module": "networks.lora"}
    return header | {"diffusion_blend.baked": json.dumps(baked)}
