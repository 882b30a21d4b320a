"""Names of the miniature's weights in ComfyUI; torch only, so that the host needs neither diffusers nor peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNET_CONFIG: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "model_channels": 64,
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "num_heads": 4,
    "context_dim": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
"""Arguments of ComfyUI's ``UNetModel`` for this model, and of its ``unet_to_diffusers``."""

# ComfyUI's CLIP text model always has this many token embeddings; ours are the first of them.
COMFY_VOCABULARY = 49408

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_to_comfy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a diffusers UNet's weights to the names of ComfyUI's ``UNetModel`` (those of the original Stable Diffusion).

    Args:
        state: weights of a UNet with one residual block a level, by diffusers' names.

    Returns:
        The same tensors by ComfyUI's names.

    Raises:
        ValueError: a name that this layout does not have.
    """
    return {comfy_name(name): tensor for name, tensor in state.items()}


def comfy_name(name: str) -> str:
    """ComfyUI's name for one of the UNet's weights.

    Levels of one residual block: input block ``1 + 2 i`` is level i, ``2 + 2 i`` its downsampling; output blocks ``2 i``
    and ``2 i + 1`` are the two residual blocks of up level i, the upsampling at the end of the second.
    """
    layer, kind = name.rsplit(".", 1)
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{kind}"
    parts = layer.split(".")
    if parts[0] == "mid_block":
        position = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return f"middle_block.{position}.{_inner(parts[1], parts[3:], name)}.{kind}"
    if parts[0] not in ("down_blocks", "up_blocks"):
        raise ValueError(f"{name!r} is not a weight of the miniature UNet: convert a model made by 'miniature train'.")
    level, section = int(parts[1]), parts[2]
    if section == "downsamplers":
        return f"input_blocks.{2 + 2 * level}.0.op.{kind}"
    if section == "upsamplers":
        # After a residual block and, where the level has one, its transformer.
        slot = 2 if UNET_CONFIG["transformer_depth_output"][-1 - 2 * level] else 1
        return f"output_blocks.{2 * level + 1}.{slot}.conv.{kind}"
    block = (
        f"input_blocks.{1 + 2 * level}" if parts[0] == "down_blocks" else f"output_blocks.{2 * level + int(parts[3])}"
    )
    return f"{block}.{1 if section == 'attentions' else 0}.{_inner(section, parts[4:], name)}.{kind}"


def _inner(section: str, rest: list[str], name: str) -> str:
    if section == "attentions":
        return ".".join(rest)
    if section == "resnets" and rest[0] in _RESNET:
        return _RESNET[rest[0]]
    raise ValueError(f"{name!r} is not a weight of the miniature UNet: convert a model made by 'miniature train'.")


def text_encoder_to_comfy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's weights for ComfyUI's ``CLIPTextModel``, with its fixed size of vocabulary.

    Args:
        state: weights of the transformers ``CLIPTextModel``; a leading ``text_model.`` may be missing, as transformers 5
            writes it.

    Returns:
        The weights by ComfyUI's names; token embeddings padded with zeros, which no token of ours reaches.
    """
    prefix = "text_model."
    weights = {
        f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in state.items() if "position_ids" not in name
    }
    table = f"{prefix}embeddings.token_embedding.weight"
    ours = weights[table]
    padding = torch.zeros((COMFY_VOCABULARY - len(ours), ours.shape[1]), dtype=ours.dtype)
    weights[table] = torch.cat([ours, padding])
    return weights
