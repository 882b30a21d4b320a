"""Baking a blend's soup into one LoRA file: the updates that fit a model, summed, under keys that LoRA loaders read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import comfy.lora
import comfy.weight_adapter
import torch
from torch import Tensor

from ...blending.baking import dense_difference, join_pairs, reduce_rank, with_one_alpha
from ...blending.plans import is_significant
from ...blending.updates import BiasDifference, Difference, LowRank, Update
from ..engine.notices import notify
from ..host import Patcher
from .base_weights import BaseWeights
from .files import RewardLoRA, RewardLoRAs
from .fitting import fit_adapter
from .reader import read_patches
from .report import TEXT_ENCODER

SUFFIXES = (
    *(".lora_up.weight", ".lora_down.weight", ".alpha", ".dora_scale", ".lora_A.weight", ".lora_B.weight"),
    *(".lora.up.weight", ".lora.down.weight", ".lora_mid.weight", ".lora_A.default.weight", ".lora_B.default.weight"),
    *(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)


@dataclass
class Baked:
    """A baked file before it is written.

    Args:
        tensors: by key.
        errors: of layers whose rank was reduced: the relative error left.
        dense: layers written as whole differences, because they are not low-rank and no rank was asked for.
        left_out: text-encoder parts of other kinds than LoRA, by file.
        pairs: layer of the network -> its key, and its low-rank update.
        fixed: layer of the network -> its other updates.
        whole: each adapter's coefficient and its exact updates.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, tuple[str, LowRank]] = field(default_factory=dict)
    fixed: dict[str, list[Update]] = field(default_factory=dict)
    whole: list[tuple[float, dict[str, list[Update]]]] = field(default_factory=list)
    size: float = 0.0
    missing: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of all layers together, ``sqrt(sum ||missing||^2 / sum ||update||^2)``."""
        return math.sqrt(self.missing / self.size) if self.size > 0 else 0.0


def sum_updates(
    model: Patcher,
    loras: RewardLoRAs,
    coefficients: Sequence[float],
    rank: int,
    advance: Callable[[int, int], None],
) -> Baked:
    """Sum the adapters' updates, ``sum_i c_i (W_i - W)`` of each layer: the soup as one file, for a later `finish`.

    Args:
        model: the host's ModelPatcher. It is not changed.
        loras: the adapters.
        coefficients: c, float[m], any sign.
        rank: of every layer; 0 keeps the sum exact.
        advance: called with the number of finished layers and of all. It may raise to stop.

    Raises:
        ValueError: an adapter does not fit the model, all coefficients are 0, or text-encoder keys are spelled in two ways.
    """
    used = [(adapter, float(c)) for adapter, c in zip(loras, coefficients, strict=True) if is_significant(c)]
    if not used:
        raise ValueError("All coefficients are 0 (is kl_scale 0?): the file would be the base model itself.")
    network, weights = model.model, BaseWeights(model)
    hosts = comfy.lora.model_lora_keys_unet(network, {})
    layers: dict[str, list[tuple[float, Update]]] = {}
    baked, keys = Baked(), _keys(hosts)
    for adapter, coefficient in used:
        fitted = _fitted(adapter, network, hosts, weights)
        baked.whole.append((coefficient, fitted))
        for name, updates in fitted.items():
            layers.setdefault(name, []).extend((coefficient, update) for update in updates)
    advance(0, len(layers))
    for number, (name, updates) in enumerate(layers.items(), 1):
        _bake_layer(baked, keys, name, updates, weights, rank)
        advance(number, len(layers))
    for name, pairs in _text_layers(used, baked).items():
        write_pair(baked, name, _reduced(baked, name, join_pairs(pairs), rank))
    return baked


def finish(baked: Baked, dtype: torch.dtype) -> None:
    """Write the layers' pairs, and make all tensors those of the file.

    Args:
        baked: of `sum_updates`.
        dtype: of the file's tensors.
    """
    for key, pair in baked.pairs.values():
        write_pair(baked, key, pair)
    baked.tensors = {
        key: tensor.to("cpu", torch.float32 if key.endswith(".alpha") else dtype).contiguous()
        for key, tensor in with_one_alpha(baked.tensors).items()
    }


def _fitted(
    adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any], weights: BaseWeights
) -> dict[str, list[Update]]:
    updates, report = fit_adapter(adapter, network, hosts, weights)
    skipped = replace(report, text_encoder=0).text()  # text-encoder weights go along here
    if skipped:
        notify(skipped)
    return updates


def _keys(hosts: Mapping[str, Any]) -> dict[str, str]:
    """Parameter name -> the key that names it in files: kohya's with diffusers' names of layers where the host knows one.

    ComfyUI, A1111 and diffusers read these for UNets. Other networks have the host's own names with kohya's prefix, as kohya
    writes them.
    """
    found: dict[str, str] = {}
    for key, target in hosts.items():
        if isinstance(target, str) and _preference(key, target) > _preference(found.get(target, ""), target):
            found[target] = key
    return found


def _preference(key: str, target: str) -> int:
    if not key.startswith("lora_unet_"):
        return 1 if key else 0
    own = target.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
    return 2 if key == f"lora_unet_{own}" else 3


def _bake_layer(
    baked: Baked,
    keys: Mapping[str, str],
    name: str,
    updates: Sequence[tuple[float, Update]],
    weights: BaseWeights,
    rank: int,
) -> None:
    biases = [(c, update) for c, update in updates if isinstance(update, BiasDifference)]
    others = [(c, update) for c, update in updates if not isinstance(update, BiasDifference)]
    parameter, key = _parameter_and_key(keys, name)
    if biases:
        bias = baked.tensors[f"{key}.diff_b"] = _sum(biases, partial(weights.read, f"{name}.bias"))
        baked.fixed.setdefault(name, []).append(BiasDifference(bias))
    if not others:
        return
    pairs = [(c, update) for c, update in others if isinstance(update, LowRank)]
    if len(pairs) == len(others):
        baked.pairs[name] = (key, _reduced(baked, key, join_pairs(pairs), rank))
        return
    difference = _sum(others, partial(weights.read, parameter))
    if rank > 0 and difference.ndim > 1:
        baked.pairs[name] = (key, _reduced(baked, key, difference, rank))
        return
    baked.size += float(difference.double().square().sum())
    baked.dense.append(key)
    baked.tensors[f"{key}.diff"] = difference
    baked.fixed.setdefault(name, []).append(Difference(difference))


def _parameter_and_key(keys: Mapping[str, str], name: str) -> tuple[str, str]:
    """A layer's parameter, and the key that names it in files."""
    parameter = name if name in keys or f"{name}.weight" not in keys else f"{name}.weight"
    return parameter, keys.get(parameter, parameter.removesuffix(".weight"))


def fit_files(model: Patcher, loras: RewardLoRAs) -> tuple[list[dict[str, list[Update]]], Callable[[str], str]]:
    """Fit adapters to a model, each on its own.

    Args:
        model: the host's ModelPatcher. It is not changed.
        loras: the adapters.

    Returns:
        The updates of each adapter by layer, and a function that gives a layer's key in files.

    Raises:
        ValueError: an adapter does not fit the model.
    """
    hosts, weights = comfy.lora.model_lora_keys_unet(model.model, {}), BaseWeights(model)
    keys = _keys(hosts)
    updates = [_fitted(adapter, model.model, hosts, weights) for adapter in loras]
    return updates, lambda name: _parameter_and_key(keys, name)[1]


def _sum(updates: Sequence[tuple[float, Update]], read: Callable[[], Tensor]) -> Tensor:
    parts = [coefficient * dense_difference(update, read).float().cpu() for coefficient, update in updates]
    return torch.stack(parts).sum(0)


def _reduced(baked: Baked, key: str, update: LowRank | Tensor, rank: int) -> LowRank:
    """The update, of the rank where one is asked for. Its size and the error left are added up."""
    if isinstance(update, LowRank):
        size = float(((update.up.double().t() @ update.up.double()) * _gram(update.down)).sum())
        if rank == 0 or update.down.shape[0] <= rank:
            baked.size += size
            return update
    else:
        size = float(update.double().square().sum())
    pair, error = reduce_rank(update, rank)
    baked.size += size
    baked.missing += error**2 * size
    baked.errors[key] = error
    return pair


def _gram(down: Tensor) -> Tensor:
    rows = down.flatten(1).double()
    return rows @ rows.t()


def write_pair(baked: Baked, key: str, pair: LowRank) -> None:
    """Write a layer's pair under its key."""
    kernel = [1] * (pair.down.ndim - 2)
    baked.tensors[f"{key}.lora_down.weight"] = pair.down
    baked.tensors[f"{key}.lora_up.weight"] = pair.up.view(*pair.up.shape, *kernel)


def _text_layers(used: Sequence[tuple[RewardLoRA, float]], baked: Baked) -> dict[str, list[tuple[float, LowRank]]]:
    """The text encoders' LoRA layers of all files, by the files' own names of them."""
    layers: dict[str, list[tuple[float, LowRank]]] = {}
    spellings: dict[str, str] = {}
    for adapter, coefficient in used:
        tensors = {key: tensor for key, tensor in adapter.tensors.items() if TEXT_ENCODER.match(key)}
        for name, pair in _text_pairs(adapter, tensors, baked):
            spellings.setdefault(name.split(".")[0] if "." in name else "kohya", adapter.file)
            layers.setdefault(name, []).append((coefficient * adapter.text_strength, pair))
    if len(spellings) > 1 and "kohya" in spellings:
        files = ", ".join(sorted(set(spellings.values())))
        raise ValueError(
            f"The files spell the text encoders' layers in different ways ({files}), so one file "
            "cannot hold them all. Convert them to kohya's names first."
        )
    return layers


def _text_pairs(adapter: RewardLoRA, tensors: Mapping[str, Tensor], baked: Baked) -> Iterator[tuple[str, LowRank]]:
    names = {key.removesuffix(end) for key in tensors for end in SUFFIXES if key.endswith(end)}
    patches, _ = read_patches(adapter, tensors, {name: name for name in names})
    read: set[str] = set()
    for name, patch in patches.items():
        factors: Any = patch.weights if isinstance(patch, comfy.weight_adapter.WeightAdapterBase) else ()
        if getattr(patch, "name", "") != "lora" or factors[3] is not None or factors[4] is not None:
            continue
        up, down, alpha = factors[0].float(), factors[1].float(), factors[2]
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        read |= set(patch.loaded_keys)
        yield name, LowRank(down, up.flatten(1) * scale)
    unread = len(tensors.keys() - read)
    if unread:
        baked.left_out[adapter.file] = unread


def baked_metadata(
    loras: RewardLoRAs, weights: Sequence[float], kl_scale: float, coefficients: Sequence[float], rank: int
) -> dict[str, str]:
    """The header of a baked file: what was baked from what, and the entries that LoRA managers show.

    Args:
        loras: the adapters.
        weights: the preference, float[m].
        kl_scale: the KL scale.
        coefficients: c, float[m].
        rank: the chosen rank, 0 for an exact sum.
    """
    adapters = [
        {**adapter.record, "weight": w, "coefficient": c}
        for adapter, w, c in zip(loras, weights, coefficients, strict=True)
    ]
    baked = {"method": "merge", "adapters": adapters, "kl_scale": kl_scale, "rank": rank or "exact"}
    parts = [f"{adapter.name} {c:.3g}" for adapter, c in zip(loras, coefficients, strict=True) if is_significant(c)]
    header = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": " + ".join(parts)}
    header |= {"ss_network_module": "networks.lora", "diffusion_blend.baked": json.dumps(baked)}
    for entry in ("modelspec.architecture", "ss_base_model_version", "diffusion_blend.base_model"):
        values = {adapter.metadata.get(entry) for adapter in loras}
        value = values.pop()
        if value is not None and not values:
            header[entry] = str(value)
    return header
