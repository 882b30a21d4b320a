"""Further tiny networks of the host's own classes: checkpoints of images, videos and sound."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import comfy_models
import torch
from comfy_networks import Architecture, reference, whole_text
from torch import Tensor

SMALL = {"attention_head_dim": 32, "num_attention_heads": 2, "num_layers": 2}


def entries(**shapes: tuple[int, ...]) -> Callable[[torch.Generator], dict[str, Any]]:
    """Random entries of a conditioning, of these shapes."""
    return lambda generator: {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def pooled(width: int) -> Callable[[torch.Generator], dict[str, Any]]:
    """A pooled text feature."""
    return entries(pooled_output=(1, width))


def _edited(generator: torch.Generator) -> dict[str, Any]:
    return whole_text(generator) | reference(16, 8, 8)(generator)


def _two_texts(generator: torch.Generator) -> dict[str, Any]:
    masks = {"attention_mask": torch.ones(1, 6), "attention_mask_mt5xl": torch.ones(1, 8)}
    return masks | entries(conditioning_mt5xl=(1, 8, 48))(generator)


def _lyrics(generator: torch.Generator) -> dict[str, Any]:
    return {"conditioning_lyrics": torch.randint(1, 40, (1, 5), generator=generator)}


def _kontext(method: str) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda generator: pooled(64)(generator) | reference(16, 8, 8, reference_latents_method=method)(generator)


def _seconds() -> dict[str, Tensor]:
    """The weights beside Stable Audio's network."""
    from comfy.ldm.audio.embedders import NumberConditioner

    tensors = {}
    for seed, name in enumerate(("seconds_start", "seconds_total")):
        own = {key: tensor.clone() for key, tensor in NumberConditioner(768).state_dict().items()}
        comfy_models.fill(own, seed)
        tensors |= {f"conditioner.conditioners.{name}.{key}": tensor for key, tensor in own.items()}
    return tensors


def _known(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the parameters that an earlier host does not know."""
    known = {field.name for field in fields(getattr(importlib.import_module(module), name))}
    return {key: value for key, value in config.items() if key in known | {"image_model"}}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "dtype"}


FLUX = {"image_model": "flux"} | _known("comfy.ldm.flux.model", "FluxParams", comfy_models.FLUX)
CHROMA = {"image_model": "chroma"} | _known("comfy.ldm.chroma.model", "ChromaParams", comfy_models.CHROMA)
FLUX2 = {"image_model": "flux2"} | _known("comfy.ldm.flux.model", "FluxParams", comfy_models.FLUX2)
LTX_AV = SMALL | {
    "image_model": "ltxav", "cross_attention_dim": 64, "audio_cross_attention_dim": 32, "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2, "caption_channels": 40, "connector_attention_head_dim": 20,
    "connector_num_attention_heads": 2, "connector_num_layers": 1,
}  # fmt: skip
UNET = {"adm_in_channels": None, "use_temporal_attention": False}
COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True,
    "crossattn_emb_channels": 40, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True,
    "adaln_lora_dim": 8, "num_blocks": 2, "num_heads": 2, "rope_enable_fps_modulation": False,
}  # fmt: skip
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 24,
    "axes_dim": [8, 12, 12], "context_in_dim": 40, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 2, "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
IMAGES = [
    Architecture("SD 1.5", "SD15", _plain(comfy_models.SD15) | UNET, (7, 768), (4, 8, 8)),
    Architecture("SDXL", "SDXL", _plain(comfy_models.SDXL) | {"use_temporal_attention": False}, (7, 2048), (4, 16, 16),
                 pooled(1280)),
    Architecture("SD3", "SD3", _plain(comfy_models.SD3), (9, 4096), (16, 8, 8), pooled(2048)),
    Architecture("Flux", "Flux", FLUX, (6, 96), (16, 8, 8), pooled(64)),
    Architecture("Flux Kontext", "Flux", FLUX, (6, 96), (16, 8, 8), _kontext("offset")),
    Architecture("Flux with references (index)", "Flux", FLUX, (6, 96), (16, 8, 8), _kontext("index")),
    Architecture("Flux 2", "Flux2", FLUX2, (6, 96), (128, 4, 4)),
    Architecture("Flux 2 with references", "Flux2", FLUX2, (6, 96), (128, 4, 4), reference(128, 4, 4)),
    Architecture("Flux 2 with references (index_timestep_zero)", "Flux2", FLUX2, (6, 96), (128, 4, 4),
                 reference(128, 4, 4, reference_latents_method="index_timestep_zero")),
    Architecture("Chroma", "Chroma", CHROMA, (6, 96), (16, 8, 8), pooled(64)),
    Architecture("OmniGen 2", "Omnigen2",
                 {"image_model": "omnigen2", "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1,
                  "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "text_feat_dim": 40,
                  "axes_dim_rope": (8, 12, 12)},
                 (6, 40), (16, 8, 8), whole_text),
    Architecture("OmniGen 2 with references", "Omnigen2",
                 {"image_model": "omnigen2", "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1,
                  "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "text_feat_dim": 40,
                  "axes_dim_rope": (8, 12, 12)},
                 (6, 40), (16, 8, 8), _edited),
    Architecture("HunyuanDiT", "HunyuanDiT",
                 {"image_model": "hydit", "hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": 40,
                  "text_states_dim_t5": 48, "text_len": 6, "text_len_t5": 8},
                 (6, 40), (4, 8, 8), _two_texts),
    Architecture("HiDream", "HiDream",
                 {"image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [16, 8, 8],
                  "caption_channels": [40, 48], "max_resolution": [16, 16], "in_channels": 16, "llama_layers": [0, 1],
                  "num_attention_heads": 2, "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 1,
                  "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 24},
                 (6, 40), (16, 8, 8), entries(conditioning_llama3=(1, 2, 6, 48), pooled_output=(1, 24))),
    Architecture("Stable Cascade C", "Stable_Cascade_C",
                 {"stable_cascade_stage": "c", "c_r": 16, "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2],
                  "blocks": [[1, 1], [1, 1]], "c_clip_text": 40, "c_clip_text_pooled": 24},
                 (6, 40), (16, 8, 8), pooled(24)),
    Architecture("Stable Cascade B", "Stable_Cascade_B",
                 {"stable_cascade_stage": "b", "c_r": 16, "c_cond": 64, "c_hidden": [32, 32, 64, 64],
                  "nhead": [-1, -1, 2, 2], "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
                  "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]], "c_clip": 40},
                 (6, 40), (4, 32, 32), pooled(40)),
]  # fmt: skip
VIDEOS_AND_SOUND = [
    Architecture("Wan 2.1", "WAN21_T2V",
                 {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1,
                  "num_layers": 2, "text_dim": 40},
                 (6, 40), (16, 3, 8, 8)),
    Architecture("Cosmos Predict2", "CosmosT2IPredict2", COSMOS, (6, 40), (16, 1, 8, 8)),
    Architecture("HunyuanVideo", "HunyuanVideo",
                 _known("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams", HUNYUAN_VIDEO),
                 (6, 40), (16, 3, 8, 8), pooled(24)),
    Architecture("LTXV", "LTXV", SMALL | {"image_model": "ltxv", "cross_attention_dim": 64, "caption_channels": 40},
                 (6, 40), (128, 3, 4, 4), whole_text),
    Architecture("LTX-AV", "LTXAV", LTX_AV, (6, 80), (128, 3, 4, 4), beside=(8, 6, 16)),
    Architecture("LTX-AV with texts to prepare", "LTXAV", LTX_AV, (6, 40), (128, 3, 4, 4), beside=(8, 6, 16),
                 prepares_texts=True),
    Architecture("Stable Audio", "StableAudio",
                 {"audio_model": "dit1.0", "embed_dim": 64, "project_cond_tokens": True, "depth": 2, "num_heads": 2},
                 (6, 768), (64, 16), weights=_seconds),
    Architecture("ACE-Step", "ACEStep",
                 SMALL | {"audio_model": "ace", "inner_dim": 64, "mlp_ratio": 2.0, "text_embedding_dim": 40,
                          "lyric_encoder_vocab_size": 50, "lyric_hidden_size": 1024},
                 (6, 40), (8, 16, 16), _lyrics),
]  # fmt: skip
FURTHER = [*IMAGES, *VIDEOS_AND_SOUND]
