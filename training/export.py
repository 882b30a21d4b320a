"""Writes adapter files: kohya keys, alpha, and the metadata that LoRA managers and the nodes read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import get_peft_model_state_dict
from safetensors.torch import save

_ARCHITECTURES = {
    "sd_v1": ("stable-diffusion-v1/lora", "sd_v1"),
    "sd_v2": ("stable-diffusion-v2-768-v/lora", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-3-medium/lora", "sd3"),
    "flux": ("flux-1-dev/lora", "flux1"),
    "flux2": ("flux-2-klein/lora", "flux2"),
    "qwen_image": ("qwen-image/lora", "qwen_image"),
    "z_image": ("z-image/lora", "z_image"),
    "wan": ("wan2.1/lora", "wan2.1"),
}
"""modelspec.architecture (Stability AI's modelspec 1.0.0) and kohya's ss_base_model_version."""


def adapter_bytes(
    unet: UNet2DConditionModel, alpha: float, metadata: Mapping[str, str], *, adapter_name: str = "default"
) -> bytes:
    """A UNet's LoRA adapter as the bytes of a ``.safetensors`` file with kohya keys.

    The keys are ``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``. ComfyUI, A1111 and diffusers
    read these. ComfyUI does not map raw peft keys for SD 1.5 and SDXL.

    Args:
        unet: a network with a peft LoRA adapter.
        alpha: the adapter's alpha. Readers scale the update by alpha / rank.
        metadata: strings for the file's header.
        adapter_name: peft's name of the adapter, where the network has several.

    Returns:
        The file's content; tensors in float32.
    """
    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(unet, adapter_name=adapter_name).items()}
    tensors = convert_state_dict_to_kohya(state)
    for key, tensor in tensors.items():  # the converter writes the rank where alpha belongs
        tensors[key] = torch.tensor(alpha) if key.endswith(".alpha") else tensor.detach().float().cpu().contiguous()
    return save(tensors, metadata=dict(metadata))


def transformer_bytes(
    transformer: Any,
    alpha: float,
    metadata: Mapping[str, str],
    rename: Callable[[str], str] = "transformer.{}".format,
    *,
    adapter_name: str = "default",
) -> bytes:
    """A transformer's LoRA adapter as the bytes of a ``.safetensors`` file with diffusers' keys.

    The keys are ``transformer.<layer>.lora_A.weight`` and ``.lora_B.weight``. ComfyUI and diffusers read these for SD3, Flux,
    Qwen-Image and Z-Image. diffusers has no alpha in such files, so ``alpha / rank`` is multiplied into ``lora_B``: both
    readers then scale by 1.

    Args:
        transformer: a network with a peft LoRA adapter.
        alpha: the adapter's alpha.
        metadata: strings for the file's header.
        rename: peft's key -> the file's, for families whose readers expect other names.
        adapter_name: peft's name of the adapter, where the network has several.

    Returns:
        The file's content; tensors in float32.
    """
    state = get_peft_model_state_dict(transformer, adapter_name=adapter_name)
    tensors = {}
    for key, value in state.items():
        rank = state[key.replace("lora_B", "lora_A")].shape[0]
        scale = alpha / rank if "lora_B" in key else 1.0
        tensors[rename(key)] = (value.detach().float() * scale).cpu().contiguous()
    return save(tensors, metadata=dict(metadata))


def adapter_metadata(
    *,
    title: str,
    architecture: str,
    base_model: str,
    rank: int,
    alpha: float,
    resolution: tuple[int, int],
    prediction_type: str,
    training: Mapping[str, Any],
) -> dict[str, str]:
    """Header of an adapter file: ``diffusion_blend.*``, ``modelspec.*`` and kohya's ``ss_*``.

    Args:
        title: the name that LoRA managers show.
        architecture: ``sd_v1``, ``sd_v2``, ``sdxl``, or another name, which is written unchanged.
        base_model: the name of the base.
        rank: LoRA rank.
        alpha: LoRA alpha.
        resolution: width and height of the training images, pixels.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        training: entries for the ``diffusion_blend.`` prefix. Values that are not strings are written as JSON.

    Returns:
        The header. safetensors allows strings only.
    """
    modelspec, kohya = _ARCHITECTURES.get(architecture, (f"{architecture}/lora", architecture))
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": modelspec,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        "ss_base_model_version": kohya,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "diffusion_blend.base_model": base_model,
    }
    for name, value in training.items():
        header[f"diffusion_blend.{name}"] = value if isinstance(value, str) else json.dumps(without_folders(value))
    return {name: without_folders(value) for name, value in header.items()}


def without_folders(value: Any) -> Any:
    """Copy JSON values and shorten every absolute path to its last part.

    Adapter files are shared, and the names of their maker's folders are private.
    """
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name  # which splits at both kinds of slashes
    return value
