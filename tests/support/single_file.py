"""Writes a tiny diffusers folder as one checkpoint in the original Stable Diffusion 1.x key layout.

The layout is that of the CompVis code (latent-diffusion, ``ldm/modules/diffusionmodules/openaimodel.py`` and
``model.py``): ``model.diffusion_model.*``, ``first_stage_model.*``, ``cond_stage_model.transformer.*``. It covers the
tiny pipelines: a UNet of one resolution (no down- or upsamplers) and a CLIP text encoder.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_as_single_file(folder: Path, path: Path) -> None:
    """Write the weights of a tiny StableDiffusionPipeline folder to one checkpoint of the original key layout.

    Args:
        folder: the diffusers folder.
        path: the .safetensors file to write.

    Raises:
        ValueError: a weight for which this small mapping has no original name.
    """
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    levels = 1 + max(int(found[1]) for key in vae if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", key)))
    checkpoint = {f"model.diffusion_model.{_unet_key(key)}": value for key, value in unet.items()}
    for key, value in vae.items():
        checkpoint[f"first_stage_model.{_vae_key(key, levels)}"] = _vae_weight(key, value)
    for key, value in text.items():  # the file's keys start with text_model. in some transformers versions only
        checkpoint[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    assert len(checkpoint) == len(unet) + len(vae) + len(text), "two weights got the same original name"
    save_file(checkpoint, path)


def copy_without_weights(folder: Path, to: Path) -> Path:
    """Copy a diffusers folder's configurations and tokenizer without its weights, so that all weights come from the file."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    return to


def _unet_key(key: str) -> str:
    module, _, parameter = key.rpartition(".")
    if module in UNET_OUTSIDE:
        return f"{UNET_OUTSIDE[module]}.{parameter}"
    found = re.fullmatch(r"(down_blocks\.0|mid_block|up_blocks\.0)\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if found is None:
        raise ValueError(f"UNet weight {key}: no original name for it here; extend tests/support/single_file.py")
    block, kind, number, rest = found[1], found[2], int(found[3]), found[4]
    within = int(kind == "attentions")  # a block of the original is [resnet, attention]
    if block == "mid_block":
        place = f"middle_block.{2 * number + within}"
    elif block == "down_blocks.0":
        place = f"input_blocks.{1 + number}.{within}"
    else:
        place = f"output_blocks.{number}.{within}"
    return f"{place}.{_replaced(rest, UNET_RESNET) if kind == 'resnets' else rest}"


def _vae_key(key: str, levels: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    attention = re.fullmatch(r"(.+)mid_block\.attentions\.0\.(.+)", key)
    if attention is not None:
        return f"{attention[1]}mid.attn_1.{_replaced(attention[2], VAE_ATTENTION)}"
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    # The original counts the decoder's levels from the picture, diffusers from the latent.
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", key)
    if "_block" in key and ".mid.block_" not in key:
        raise ValueError(f"VAE weight {key}: no original name for it here; extend tests/support/single_file.py")
    return key


def _vae_weight(key: str, value: Tensor) -> Tensor:
    is_projection = ".attentions." in key and value.ndim == 2
    return value[:, :, None, None].contiguous() if is_projection else value  # the original's are 1x1 convolutions


def _replaced(rest: str, names: dict[str, str]) -> str:
    module, _, parameter = rest.rpartition(".")
    return f"{names[module]}.{parameter}"
