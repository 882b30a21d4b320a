"""Small checkpoints of true architecture with random weights, which the host's own loader recognises.

Imported only where a host is on ``sys.path``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import comfy.model_detection
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.chroma.model import Chroma, ChromaParams
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
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
SD2 = SD15 | {"num_heads": -1, "num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": 96,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}
FLUX2 = {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 96,
    "hidden_size": 256,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "guidance_embed": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
    "dtype": torch.float32,
}
CHROMA = {name: FLUX[name] for name in FLUX if name not in ("guidance_embed", "dtype")} | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 256,
    "hidden_dim": 64,
    "n_layers": 2,
    "vec_in_dim": 0,
    "dtype": torch.float32,
}
QWEN = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "in_channels": 64,
    "dtype": torch.float32,
}
Z_IMAGE = {
    "in_channels": 16,
    "dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "ffn_dim_multiplier": 8 / 3,
    "qk_norm": True,
    "cap_feat_dim": 96,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "dtype": torch.float32,
}
# The host's detection knows these architectures at their full width only.
NARROW = {
    "flux": {name: FLUX[name] for name in ("vec_in_dim", "context_in_dim", "hidden_size", "num_heads")},
    "chroma": {name: CHROMA[name] for name in CHROMA if name != "dtype"},
    "qwen_image": {name: QWEN[name] for name in ("num_attention_heads", "joint_attention_dim")},
    "lumina2": {name: Z_IMAGE[name] for name in Z_IMAGE if name != "dtype"},
}
ARCHITECTURES = {"flux": Flux, "chroma": Chroma, "qwen_image": QwenImageTransformer2DModel, "lumina2": NextDiT}
WAN = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "dtype": torch.float32}
CONTEXT = {
    "sd15": (7, 768),
    "inpaint": (7, 768),
    "sd2": (7, 1024),
    "sdxl": (7, 2048),
    "sd3": (9, 4096),
    "flux": (9, 96),
    "flux2": (9, 96),
    "wan": (9, 4096),
    "chroma": (9, 96),
    "qwen": (9, 96),
    "zimage": (9, 96),
}
CHANNELS = {"sd15": 4, "inpaint": 4, "sd2": 4, "sdxl": 4, "flux2": 128} | dict.fromkeys(
    ("sd3", "flux", "wan", "chroma", "qwen", "zimage"), 16
)
FRAMES = {"wan": 3, "qwen": 1}
POOLED = {"sdxl": 1280, "sd3": 2048, "flux": 64, "chroma": 64}


def _known(network: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the parameters that an earlier host does not know."""
    parameters = {Flux: FluxParams, Chroma: ChromaParams}.get(network)
    if parameters is not None:
        names = set(parameters.__dataclass_fields__) | {"dtype", "operations"}
    else:
        names = set(inspect.signature(network.__init__).parameters)
    return {name: value for name, value in config.items() if name in names}


_NETWORKS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sd15": (UNetModel, SD15),
    "sdxl": (UNetModel, SDXL),
    "sd3": (MMDiT, SD3),
    "sd2": (UNetModel, SD2),
    "inpaint": (UNetModel, SD15 | {"in_channels": 9}),
    "flux": (Flux, FLUX),
    "flux2": (Flux, FLUX2),
    "wan": (WanModel, WAN),
    "chroma": (Chroma, CHROMA),
    "qwen": (QwenImageTransformer2DModel, QWEN),
    "zimage": (NextDiT, Z_IMAGE),
}


def fill(tensors: dict[str, Tensor], seed: int) -> None:
    """Fill weights in place: random with unit gain, and norms near 1."""
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
    model = network(**_known(network, config), operations=comfy.ops.disable_weight_init)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill(tensors, seed)
    return tensors


@cache
def load(kind: str) -> Any:
    """Load the MODEL with the host's own loader."""
    return load_tensors(state_dict(kind), dtype=torch.float32)


def load_tensors(tensors: dict[str, Tensor], **options: Any) -> Any:
    """Load a MODEL of these weights with options of the host's own loader ("dtype", "custom_operations")."""
    detect = comfy.model_detection.detect_unet_config

    def narrow(*args: Any, **kwargs: Any) -> Any:
        config = detect(*args, **kwargs)
        if config is not None:
            name = str(config.get("image_model"))
            config |= _known(ARCHITECTURES.get(name), NARROW[name]) if name in NARROW else {}
        return config

    with mock.patch.object(comfy.model_detection, "detect_unet_config", narrow):
        model = comfy.sd.load_diffusion_model_state_dict(dict(tensors), model_options=options)
    assert model is not None, "the host does not recognise this shallow network"
    return model


def conditioning(kind: str, seed: int, length: int | None = None) -> list[Any]:
    """Make one CONDITIONING entry with random text features."""
    tokens, width = CONTEXT[kind]
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, length or tokens, width, generator=generator)
    options = {}
    if kind in POOLED:
        options["pooled_output"] = torch.randn(1, POOLED[kind], generator=generator)
    if kind == "zimage":  # older hosts count the tokens by it
        options["attention_mask"] = torch.ones(1, context.shape[1], dtype=torch.int64)
    return [[context, options]]


def latent(kind: str, batch: int = 1, size: int = 8) -> dict[str, Tensor]:
    """Make an empty latent; for a video it has three frames."""
    frames = (FRAMES[kind],) if kind in FRAMES else ()
    return {"samples": torch.zeros(batch, CHANNELS[kind], *frames, size, size)}
