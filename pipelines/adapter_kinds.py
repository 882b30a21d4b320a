"""DoRA, LoHa and LoKr of a diffusers network, from the tensors of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..blending.kinds import Factors, factored_form
from ..blending.layers import find_layer, layer_shape
from ..blending.updates import Difference, LowRank, ScaledOutput, Update

_LOHA = ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_NEEDED = {"loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}


def updates_of_kind(
    parts: Mapping[str, Tensor], network: nn.Module, layer: str, scale_of: Callable[[int], float]
) -> list[Update]:
    """The updates of a layer whose tensors are more than a plain LoRA's.

    Args:
        parts: tensors by their names: ``down``, ``up``, ``alpha``, ``dora_scale`` (LyCORIS), ``magnitude`` (peft), ``hada_*``
            or ``lokr_*``.
        network: whose layer it is. A DoRA depends on the layer's weight.
        layer: the layer's name there.
        scale_of: rank -> the factor on the update, where the layer has no alpha.

    Raises:
        ValueError: tensors that are missing or of another shape, or a combination that is not supported.
    """
    rows, inputs = layer_shape(network, layer)
    if "down" in parts or "up" in parts:
        if not {"down", "up"} <= set(parts):
            raise ValueError("it has one of lora_up and lora_down; the file is not whole")
        rank = parts["down"].shape[0]
        alpha = _alpha(parts, rank, scale_of)
        pair = factored_form(Factors("lora", (parts["up"], parts["down"], alpha, None, None, None)), rows, inputs)
        assert isinstance(pair, LowRank)
        return _dora(pair, parts, find_layer(network, layer))
    if "dora_scale" in parts or "magnitude" in parts:
        raise ValueError("a DoRA of LoHa or LoKr is not supported")
    kind, names = ("loha", _LOHA) if any(part.startswith("hada_") for part in parts) else ("lokr", _LOKR)
    missing = [name for name in _NEEDED.get(kind, ()) if name not in parts]
    if missing:
        raise ValueError(f"it has no {missing[0]}; the file is not whole")
    factored = parts.get("hada_w1_b", parts.get("lokr_w2_b", parts.get("lokr_w1_b")))
    values: dict[str, Any] = {name: parts[name].float() for name in names if name in parts and name != "alpha"}
    values["alpha"] = None if factored is None else _alpha(parts, factored.shape[0], scale_of)
    if factored is None and "alpha" not in parts and "lokr_w1" in values:
        values["lokr_w1"] = values["lokr_w1"] * scale_of(0)  # peft scales whole factors too, LyCORIS does not
    return [factored_form(Factors(kind, (*(values.get(name) for name in names), None)), rows, inputs)]


def _alpha(parts: Mapping[str, Tensor], rank: int, scale_of: Callable[[int], float]) -> float:
    return float(parts["alpha"]) if "alpha" in parts else scale_of(rank) * rank


def _dora(pair: LowRank, parts: Mapping[str, Tensor], module: Any) -> list[Update]:
    """DoRA (Liu et al. 2024, arXiv 2402.09353): ``W_i = s (W + up @ down)``.

    peft's magnitude m gives ``s = m / ||W + up @ down||`` by output. A dora_scale gives ``s = m / ||W||`` by output, as LyCORIS
    and ComfyUI take it; with one number per input it gives ``s = m / ||W + up @ down||`` by input.
    """
    weight = module.weight.detach().float().cpu()
    total = weight + (pair.up @ pair.down.flatten(1)).view_as(weight)
    magnitude = parts.get("magnitude", parts.get("dora_scale"))
    assert magnitude is not None
    magnitude, small = magnitude.float(), torch.finfo(torch.float32).eps
    if magnitude.numel() != len(weight):
        if "magnitude" in parts or magnitude.numel() != weight.shape[1]:
            raise ValueError(f"its DoRA scale has {magnitude.numel()} numbers for {len(weight)} outputs")
        by_input = magnitude.view(1, -1, *[1] * (weight.ndim - 2))
        norm = total.transpose(0, 1).flatten(1).norm(dim=1).view_as(by_input)
        return [Difference(total * by_input / (norm + small) - weight)]
    factor = magnitude.flatten() / ((total if "magnitude" in parts else weight).flatten(1).norm(dim=1) + small)
    bias = None if module.bias is None else module.bias.detach().float().cpu()
    return [LowRank(pair.down, pair.up * factor[:, None]), ScaledOutput(factor - 1, bias)]
