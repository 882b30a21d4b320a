"""Small checkpoints of true architecture, made on the fly: random weights that the host's own loader recognises.

Imported only where a host is on ``sys.path``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.ops
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
}
SD15 = UNET | {
    "num_heads": 8,
    "num_head_channels": -1,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
}
# Three levels with the transformer depths of Segmind Vega, an SDXL the host knows, all 320 wide.
SDXL = UNET | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD3 = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 36864 // 16,
    "pos_embed_max_size": 48,
    "pos_embed_scaling_factor": None,
    "dtype": torch.float32,
}
CONTEXT = {"sd15": (7, 768), "sdxl": (7, 2048), "sd3": (9, 4096)}
CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16}
POOLED = {"sdxl": 1280, "sd3": 2048}

_NETWORKS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sd15": (UNetModel, SD15),
    "sdxl": (UNetModel, SDXL),
    "sd3": (MMDiT, SD3),
}


def fill(tensors: dict[str, Tensor], seed: int) -> None:
    """Random weights of unit gain, norms near 1, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:
            tensor.normal_(0, 1 / math.sqrt(tensor[0].numel()), generator=generator)
        elif name.endswith("weight"):
            tensor.normal_(1, 0.05, generator=generator)
        else:
            tensor.normal_(0, 0.05, generator=generator)


@cache
def state_dict(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """The diffusion network's weights, without a prefix."""
    network, config = _NETWORKS[kind]
    model = network(**config, operations=comfy.ops.disable_weight_init)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill(tensors, seed)
    return tensors


@cache
def load(kind: str) -> Any:
    """The MODEL as the host's own loader makes it."""
    model = comfy.sd.load_diffusion_model_state_dict(dict(state_dict(kind)), model_options={"dtype": torch.float32})
    assert model is not None, f"the host does not recognise the shallow {kind}"
    return model


def conditioning(kind: str, seed: int, length: int | None = None) -> list[Any]:
    """One CONDITIONING entry with random text features."""
    tokens, width = CONTEXT[kind]
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, length or tokens, width, generator=generator)
    options = {}
    if kind in POOLED:
        options["pooled_output"] = torch.randn(1, POOLED[kind], generator=generator)
    return [[context, options]]


def latent(kind: str, batch: int = 1, size: int = 8) -> dict[str, Tensor]:
    """An empty latent."""
    return {"samples": torch.zeros(batch, CHANNELS[kind], size, size)}
