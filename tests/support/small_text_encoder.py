"""The miniature's MODEL and CLIP, adapters of both, and images with the host's own nodes."""

import math

import comfy.sd
import nodes as host_nodes
import torch

STRENGTH = 0.7


def low_rank(prefix, shape, generator, rank=2, size=0.6):
    return {
        f"{prefix}.lora_up.weight": torch.randn(shape[0], rank, generator=generator) * size,
        f"{prefix}.lora_down.weight": torch.randn(rank, shape[1], generator=generator) / math.sqrt(shape[1]),
    }


def adapter(small, seed, text=True, network=True):
    """Make tensors for the cross-attention of the network and for two layers of the text encoder."""
    model, clip = small
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    if network:
        for key, weight in model.model.state_dict().items():
            if key.endswith("attn2.to_v.weight"):
                name = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
                tensors |= low_rank(f"lora_unet_{name}", weight.shape, generator)
    if text:
        for layer in ("mlp_fc1", "self_attn_q_proj"):
            part, _, rest = layer.rpartition("_") if layer == "mlp_fc1" else ("self_attn", "", "q_proj")
            weight = clip.cond_stage_model.state_dict()[
                f"clip_l.transformer.text_model.encoder.layers.0.{part}.{rest}.weight"
            ]
            tensors |= low_rank(f"lora_te_text_model_encoder_layers_0_{layer}", weight.shape, generator)
    return tensors


def encode(clip, text):
    return host_nodes.CLIPTextEncode().encode(clip, text)[0]


def sample(model, positive, negative, batch=2):
    latent = {"samples": torch.zeros(batch, 4, 16, 16)}
    return host_nodes.common_ksampler(model, 3, 3, 3.0, "euler", "normal", positive, negative, latent)[0]["samples"]


def image(model, clip, **options):
    return sample(model, encode(clip, "a red circle"), encode(clip, "blue"), **options)


def by_the_host(small, tensors):
    model, clip = small
    return comfy.sd.load_lora_for_models(model, clip, dict(tensors), STRENGTH, STRENGTH)
