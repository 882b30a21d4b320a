"""Write the small checkpoint and LoRA files that the server tests load. Run as a script, in a process of its own:

``python make_server_models.py HOST MODELS`` puts ``checkpoints/tiny_sd15.safetensors`` (a shallow SD 1.5 UNet, a CLIP-L
and a TAESD, random weights, SD 1.5 key names, fp16) and three LoRA files into the models folder MODELS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CHECKPOINT = "tiny_sd15.safetensors"
LORAS = ("aesthetic.safetensors", "faithful.safetensors", "vivid.safetensors")


def checkpoint_tensors() -> dict[str, Tensor]:
    """An SD 1.5 checkpoint as small as the host's loader allows: its text encoder's size is fixed."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip
    import comfy.taesd.taesd
    import comfy_models

    clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32).transformer.state_dict()
    vae = comfy.taesd.taesd.TAESD().state_dict()
    for seed, tensors in enumerate((clip, vae), start=1):
        comfy_models.fill(tensors, seed)
    for name in vae:
        if name.endswith("bias"):
            vae[name].zero_()
    vae["vae_scale"].fill_(1.0)
    vae["vae_shift"].fill_(0.0)
    parts = {
        "model.diffusion_model.": comfy_models.state_dict("sd15"),
        "cond_stage_model.transformer.": clip,
        "first_stage_model.": vae,
    }
    return {
        prefix + name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for prefix, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def write(models: Path) -> None:
    import comfy_adapters

    (models / "checkpoints").mkdir(parents=True, exist_ok=True)
    (models / "loras").mkdir(parents=True, exist_ok=True)
    save_file(checkpoint_tensors(), models / "checkpoints" / CHECKPOINT)
    for seed, name in enumerate(LORAS, start=1):
        comfy_adapters.write(models / "loras", Path(name).stem, comfy_adapters.kohya("sd15", seed))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    write(Path(sys.argv[2]))
