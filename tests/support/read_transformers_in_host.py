"""Read adapter files of transformers with a ComfyUI's own reader, in a process of its own.

``python read_transformers_in_host.py HOST FOLDER`` reads FOLDER/FAMILY.safetensors and writes FOLDER/FAMILY.changes.safetensors:
the change of every weight, by the file's name of the layer. Families that this ComfyUI does not know are left out.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

FLUX = {
    "hidden_size": 32,
    "depth": 1,
    "depth_single_blocks": 1,
    "num_heads": 2,
    "axes_dim": [4, 4, 8],
    "vec_in_dim": 32,
}
FLUX |= {
    "image_model": "flux",
    "in_channels": 4,
    "context_in_dim": 24,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "patch_size": 2,
}
FLUX |= {"txt_ids_dims": [], "qkv_bias": True, "guidance_embed": True, "out_channels": 4}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "axes_dim": [4, 4, 4, 4],
    "in_channels": 16,
    "context_in_dim": 48,
    "patch_size": 1,
}
FLUX2 |= {
    "txt_ids_dims": [3],
    "vec_in_dim": None,
    "qkv_bias": False,
    "guidance_embed": False,
    "mlp_ratio": 3.0,
    "global_modulation": True,
}
FLUX2 |= {"mlp_silu_act": True, "ops_bias": False, "out_channels": 16}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("Flux", FLUX),
    "flux2_klein": ("Flux2", FLUX2),
    "qwen_image": (
        "QwenImage",
        {
            "image_model": "qwen_image",
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "z_image": (
        "ZImage",
        {
            "image_model": "lumina2",
            "dim": 64,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 12, 12],
            "axes_lens": [64, 64, 64],
            "qk_norm": True,
            "z_image_modulation": True,
        },
    ),
    "wan": (
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 24,
            "ffn_dim": 32,
            "num_heads": 2,
            "num_layers": 2,
            "text_dim": 24,
        },
    ),
}
"""The host's configuration of each tiny network of `tiny_transformers`."""


def main(host: str, folder: str) -> None:
    sys.path.insert(0, host)
    sys.argv = ["read", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.supported_models
    import torch

    for family, (configuration, network) in NETWORKS.items():
        file = Path(folder) / f"{family}.safetensors"
        if not hasattr(comfy.supported_models, configuration) or not file.is_file():
            continue
        kind = getattr(comfy.supported_models, configuration)(_known(network))
        kind.set_inference_dtype(torch.float32, None)
        changes(kind.get_model({}, "", device=torch.device("cpu")), file)


def _known(network: dict[str, Any]) -> dict[str, Any]:
    """Leave out what an older host's Flux does not have."""
    from comfy.ldm.flux.model import FluxParams

    if network["image_model"] not in ("flux", "flux2"):
        return dict(network)
    fields = {"image_model", *(field.name for field in dataclasses.fields(FluxParams))}
    return {name: value for name, value in network.items() if name in fields}


def changes(model: Any, file: Path) -> None:
    """Write the change of every layer that the file names."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils
    import torch
    from safetensors.torch import save_file

    state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file), safe_load=True))
    names = comfy.lora.model_lora_keys_unet(model, {})
    layers = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    patches, weights, found = comfy.lora.load_lora(state, names), model.state_dict(), {}
    for layer in layers:
        target = names[layer]
        key, offset = (target, None) if isinstance(target, str) else target
        zeros = torch.zeros_like(weights[key], dtype=torch.float32)
        changed = comfy.lora.calculate_weight([(1.0, patches[target], 1.0, offset, None)], zeros, key)
        found[layer] = (changed if offset is None else changed.narrow(*offset)).contiguous()
    save_file(found, file.with_suffix(".changes.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
