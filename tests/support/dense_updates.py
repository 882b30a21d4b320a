"""Updates as differences of weights, and the same differences as the host itself patches them.

Imported only where a host is on ``sys.path``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy_models
import torch
from diffusion_blend.blending.layers import Layer
from diffusion_blend.blending.updates import BiasDifference, Difference, ParameterDifference, Update
from diffusion_blend.nodes.adapters.base_weights import BaseWeights
from diffusion_blend.nodes.adapters.files import RewardLoRA
from diffusion_blend.nodes.adapters.fitting import fit_adapter
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def fit(model: Any, tensors: Mapping[str, Tensor], strength: float = 1.0, name: str = "a") -> tuple[dict, Any]:
    """Return the updates and the report of a file on a MODEL."""
    adapter = RewardLoRA(name, f"{name}.safetensors", tensors, None, strength)
    hosts = comfy.lora.model_lora_keys_unet(model.model, {})
    return fit_adapter(adapter, model.model, hosts, BaseWeights(model))


def changes(network: nn.Module, updates: Mapping[str, Sequence[Update]]) -> dict[str, Tensor]:
    """Return parameter name -> its difference by the updates, found by applying them to unit vectors."""
    found: dict[str, Tensor] = {}
    for name, some in updates.items():
        if isinstance(some[0], ParameterDifference):
            found[name] = sum(update.tensors()[0] for update in some)
            continue
        module = network.get_submodule(name)
        weight, bias = _weight_and_bias(module, some)
        if weight.any():
            found[f"{name}.weight"] = weight
        if bias.any():
            found[f"{name}.bias"] = bias
    return found


def _weight_and_bias(module: Any, updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach()
    bias = torch.zeros(weight.shape[0]) if getattr(module, "bias", None) is None else module.bias.detach()
    if weight.ndim == 1 or isinstance(module, nn.Embedding):
        dense = [update for update in updates if isinstance(update, Difference)]
        offsets = [update.tensors()[0] for update in updates if not isinstance(update, Difference)]
        return sum((update.weight for update in dense), torch.zeros_like(weight)), sum(offsets, torch.zeros_like(bias))
    inputs = weight[0].numel()
    if weight.ndim == 2:
        layer, x = Layer(functional.linear, -1), torch.eye(inputs)
    else:
        layer = Layer(lambda x, w: CONVOLUTIONS[w.ndim](x, w, stride=w.shape[2:]), 1)
        x = torch.eye(inputs).view(inputs, *weight.shape[1:])
    tail = [1] * (weight.ndim - 2)
    y = layer.apply(x, weight) + bias.view(-1, *tail)
    zero_x, zero_y = torch.zeros_like(x[:1]), bias.view(1, -1, *tail)
    # Differences of the bias are left out of the weight's: a large one would swallow it.
    linear = [update for update in updates if not isinstance(update, BiasDifference)]
    constant = sum((u.delta(layer, zero_x, zero_y) for u in linear), torch.zeros_like(zero_y)).reshape(1, -1)
    moved = sum((u.delta(layer, x, y) for u in linear), torch.zeros_like(y)).reshape(inputs, -1)
    shift = sum(update.delta(layer, zero_x, zero_y) for update in updates).flatten()
    return (moved - constant).t().reshape(weight.shape), shift


def host_changes(
    model: Any, key_map: Mapping[str, Any], tensors: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """Return parameter name -> its difference by an adapter, as the host patches it.

    Args:
        model: the host's ModelPatcher, without patches.
        key_map: the host's map from LoRA keys to its weights.
        tensors: the adapter file.
        strength: as in the host's Load LoRA.
    """
    weights = model.model.state_dict()
    patched: dict[str, Tensor] = {}
    converted = comfy.lora_convert.convert_lora(dict(tensors))
    for target, patch in comfy.lora.load_lora(converted, dict(key_map), log_missing=False).items():
        name, *slice_and_function = target if isinstance(target, tuple) else (target,)
        if name not in weights:
            continue
        offset, function = [*slice_and_function, None, None][:2]
        weight = patched.get(name, weights[name].detach().float())
        after = comfy.lora.calculate_weight([(strength, patch, 1.0, offset, function)], weight.clone(), name)
        if after.shape == weight.shape:
            patched[name] = after
    found = {name: weight - weights[name].detach().float() for name, weight in patched.items()}
    return {name: change for name, change in found.items() if change.any()}


def fitted(kind: str, tensors: Mapping[str, Tensor], strength: float = 0.7) -> tuple[dict, dict, Any]:
    """Return our changes of a small MODEL's parameters by a file, the host's, and the report."""
    model = comfy_models.load(kind)
    updates, report = fit(model, tensors, strength)
    hosts = host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, strength)
    return changes(model.model, updates), hosts, report


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Check that names are equal, and differences too, up to the rounding of the weights."""
    assert ours.keys() == theirs.keys()
    for name, change in theirs.items():
        scale = float(change.abs().max())
        assert math.isfinite(scale)
        assert float((ours[name] - change).abs().max()) <= tolerance * max(scale, 1.0), name
