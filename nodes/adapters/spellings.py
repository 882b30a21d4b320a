"""Names of layers in adapter files that ComfyUI's own key maps do not hold.

The host maps each naming for some architectures only. Here every naming holds for every architecture that the host has a table
for, so that files load that no ComfyUI loader applies today. A name that the host maps keeps the host's meaning.

| prefix | written by |
|---|---|
| `unet.` | diffusers, `save_lora_weights` of SD 1.5 and SDXL (diffusers/loaders/lora_pipeline.py) |
| `transformer.` | diffusers, `save_lora_weights` of the transformers (same file) |
| `base_model.model.` | PEFT, `get_peft_model_state_dict` (peft/utils/save_and_load.py) |
| `unet.base_model.model.` | PEFT state saved under diffusers' name of the network (PixArt's training script) |
| `diffusion_model.` | ComfyUI's Train LoRA, ai-toolkit |
| `model.diffusion_model.` | the layers' names in a checkpoint of the original repositories |
| none | DiffSynth, diffusion-pipe |
| `lora_unet_`, dots as underscores | kohya's sd-scripts and musubi-tuner (ComfyUI issue 11487 for Z-Image) |
| `lora_transformer_`, same | OneTrainer |
| `lycoris_`, same | LyCORIS, SimpleTuner |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import comfy.utils

DOTTED = (
    "unet.base_model.model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "",
)
"""Prefixes before a layer's dotted name, longer ones first."""

UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Prefixes before a layer's name with underscores for dots."""


def key_maps(network: Any, hosts: Mapping[str, Any], stems: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Map the names of layers in a file to the network's weights.

    Args:
        network: the host's BaseModel.
        hosts: ``comfy.lora.model_lora_keys_unet`` of the network.
        stems: the names in the file, without the endings of their tensors.

    Returns:
        Name -> target, for the names that the host maps, in its order; and for those that belong to the network otherwise.
    """
    wanted = set(stems)
    found = {name: target for name, target in hosts.items() if name in wanted}
    if len(found) == len(wanted):
        return found, {}
    ours: dict[str, Any] = {}
    ambiguous: set[str] = set()
    for name, target in _all_spellings(network, hosts):
        if name in wanted and name not in found and ours.setdefault(name, target) != target:
            ambiguous.add(name)
    return found, {name: target for name, target in ours.items() if name not in ambiguous}


def _all_spellings(network: Any, hosts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, target in _plain_names(network, hosts):
        for prefix in DOTTED:
            yield prefix + name, target
        for prefix in UNDERSCORED:
            yield prefix + name.replace(".", "_"), target


def _plain_names(network: Any, hosts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every dotted name that the host knows a layer by, without its prefix."""
    for name, target in hosts.items():
        if "." in name and not name.startswith(UNDERSCORED):
            prefix = next(prefix for prefix in DOTTED if name.startswith(prefix))
            yield name.removeprefix(prefix), target
    for theirs, ours in comfy.utils.unet_to_diffusers(network.model_config.unet_config).items():
        if theirs.endswith(".weight"):
            yield theirs.removesuffix(".weight"), f"diffusion_model.{ours}"
