"""Names of a network's layers in adapter files: from kohya's to diffusers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> down, up."""

_KOHYA = ("lora_unet_", "lora_transformer_")

_LOADERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "QwenImageTransformer2DModel": "QwenImageLoraLoaderMixin",
    "ZImageTransformer2DModel": "ZImageLoraLoaderMixin",
}
"""Class of a network -> the class of diffusers that knows its names in other trainers' files."""


TWICE = "and only one update of a layer counts: remove one of them from the file"


def diffusers_names(factors: Factors, network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Rename layers to the network's own names.

    A name that the network has stays. A kohya name is the layer's name with underscores for dots. Names of another layout
    (SDXL's ``input_blocks``, Flux's ``double_blocks``) are renamed by diffusers itself.

    Args:
        factors: as in the file, without the file's prefix.
        network: a UNet or a transformer.

    Returns:
        The same factors; a fused projection may have become several. A name that nobody knows is left as it is.

    Raises:
        ValueError: two names are of one layer.
    """
    known = {name for name, _ in network.named_modules()}
    flat = {name.replace(".", "_"): name for name in known}
    named: dict[str, str] = {}
    for layer in factors:
        bare = layer
        for prefix in _KOHYA:
            bare = bare.removeprefix(prefix)
        found = layer if layer in known else flat.get(bare)
        if found is None:
            return _by_diffusers(factors, network)
        twice = next((other for other, name in named.items() if name == found), None)
        if twice is not None:
            raise ValueError(f"{twice!r} and {layer!r} are two names of one layer, {TWICE}")
        named[layer] = found
    return {named[layer]: pair for layer, pair in factors.items()}


def layer_names(layers: Sequence[str], network: nn.Module) -> dict[str, str]:
    """The network's names of layers whose updates are not plain LoRA.

    Args:
        layers: as in the file, without the file's prefix.
        network: a UNet or a transformer.

    Raises:
        ValueError: a layer of the file is several layers of the network, or two names are of one layer.
    """
    # A pair that holds its layer's number goes through the same renaming.
    marks = {layer: (torch.full((1, 1), float(i)), torch.ones(96, 1)) for i, layer in enumerate(layers)}
    names: dict[str, str] = {}
    for name, (mark, _) in diffusers_names(marks, network).items():
        layer = layers[round(float(mark))]
        if layer in names:
            raise ValueError(
                f"{layer!r} is one layer in the file and several in diffusers, which only plain LoRA can be split into"
            )
        names[layer] = name
    return names


def _by_diffusers(factors: Factors, network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    from diffusers.loaders import lora_pipeline
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    loader: Any = getattr(lora_pipeline, _LOADERS.get(type(network).__name__, ""), None)
    if loader is None or not any(layer.startswith(_KOHYA) for layer in factors):
        return dict(factors)
    tensors: dict[str, Tensor] = {}
    is_unet = type(network).__name__ == "UNet2DConditionModel"
    for layer, (down, up) in factors.items():
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        if not is_unet:  # these readers expect one; it is in the factors already
            tensors[f"{layer}.alpha"] = torch.tensor(float(down.shape[0]))
    if is_unet:
        renamed = loader.lora_state_dict(tensors, unet_config=getattr(network, "config", None))[0]
        renamed = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in renamed.items()})
    else:
        renamed = loader.lora_state_dict(tensors)
        renamed = {key.removeprefix("transformer."): value for key, value in renamed.items()}
    return {
        key.removesuffix(".lora_A.weight"): (down, renamed[key.replace(".lora_A.", ".lora_B.")])
        for key, down in renamed.items()
        if key.endswith(".lora_A.weight")
    }
