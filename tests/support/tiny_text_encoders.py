"""CLIPs of the host's own classes with several text encoders, few layers and random weights.

Imported only where a host is on ``sys.path``.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import comfy_models
import torch
from torch import Tensor

SHALLOW = {"num_hidden_layers": 3, "intermediate_size": 64}
NARROW = SHALLOW | {"hidden_size": 64, "num_attention_heads": 2}
T5 = {"num_layers": 1, "d_model": 96, "d_ff": 64, "num_heads": 2, "d_kv": 16, "vocab_size": 32128}


def _target(kind: str) -> tuple[Any, Any, dict[str, Any]]:
    """The host's classes of the encoders and the tokenizer, and the configurations that differ from the true ones."""
    both = {"clip_l_model_config": SHALLOW, "clip_g_model_config": SHALLOW}
    if kind == "sdxl":
        return comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, both
    if kind == "sd3":  # without T5, as the host loads it from two files
        sd3 = comfy.text_encoders.sd3_clip
        return sd3.sd3_clip(t5=False), sd3.SD3Tokenizer, both
    flux = comfy.text_encoders.flux
    return flux.flux_clip(), flux.FluxTokenizer, {"clip_l_model_config": NARROW, "t5xxl_model_config": T5}


@cache
def load(kind: str) -> Any:
    """Make the CLIP of "sdxl", "sd3" or "flux", for the small checkpoint of that name."""
    model, tokenizer, configurations = _target(kind)
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    options = {name: dict(values) for name, values in configurations.items()} | {"dtype": torch.float32}
    clip = comfy.sd.CLIP(target, model_options=options)
    comfy_models.fill(clip.cond_stage_model.state_dict(), 3)
    return clip


def adapter(kind: str, seed: int, rank: int = 2) -> dict[str, Tensor]:
    """Make a LoRA on a layer of every encoder, in the host's generic naming."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, weight in load(kind).cond_stage_model.state_dict().items():
        if key.endswith(("layers.0.mlp.fc1.weight", "block.0.layer.0.SelfAttention.v.weight")):
            name = f"text_encoders.{key.removesuffix('.weight')}"
            rows, columns = weight.shape
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.6
            down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            tensors[f"{name}.lora_down.weight"] = down
    return tensors
