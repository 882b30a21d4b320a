"""Checkpoints of the benchmarks: the tests' shallow ones, or true-size ones of random weights under the same names."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy_models
import torch

SD15 = comfy_models.SD15 | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
SDXL = comfy_models.SDXL | {
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
# 24 blocks 1536 wide, the size of SD3 and SD3.5 medium (which has further attention layers).
SD3 = comfy_models.SD3 | {
    "depth": 24,
    "pos_embed_max_size": 192,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}
TRUE = {"sd15": SD15, "sdxl": SDXL, "sd3": SD3}


def use_true_size(kind: str) -> None:
    """Let the kind's name mean the true-size network from now on."""
    network, _ = comfy_models._NETWORKS[kind]
    comfy_models._NETWORKS[kind] = (network, TRUE[kind])
    comfy_models.state_dict.cache_clear()


def load(kind: str, dtype: torch.dtype) -> Any:
    """Load a MODEL of its own with the host's loader."""
    tensors = {name: tensor.to(dtype) for name, tensor in comfy_models.state_dict(kind).items()}
    model = comfy.sd.load_diffusion_model_state_dict(tensors, model_options={"dtype": dtype})
    if model is None:
        raise SystemExit(f"This ComfyUI does not recognise the network {kind!r}.")
    return model
