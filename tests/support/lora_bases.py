"""Tiny diffusers bases in folders, with LoRA files for them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusion_blend.blending.layers import layer_shape
from safetensors.torch import save_file
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from tiny_transformers import sd3_prompt, tiny_sd3

TARGETS = ("to_q", "to_v", "proj_in", "conv1", "attn.to_k")


def make(kind: str, path: Path) -> Any:
    """Make a tiny pipeline, and its base in a folder."""
    if kind == "sd3":
        pipe: Any = tiny_sd3()
        pipe.save_pretrained(path)
    else:
        save = save_tiny_sd if kind == "sd" else save_tiny_sdxl
        pipe = DiffusionPipeline.from_pretrained(save(path), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Base:
    """A tiny base in a folder, and three LoRA files for it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.path = folder / "base"
        self.pipe = make(kind, self.path)
        self.network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        self.files = [self.write(name, seed) for seed, name in enumerate("abc")]

    def write(self, name: str, seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        layers = [(name, self.network) for name, _ in self.network.named_modules() if name.endswith(TARGETS)]
        if self.kind != "sd3":
            names = [name for name, _ in self.pipe.text_encoder.named_modules()]
            layers.append((next(name for name in names if name.endswith("layers.0.mlp.fc1")), self.pipe.text_encoder))
        for layer, network in layers:
            out, taken = layer_shape(network, layer)
            down = torch.randn((2 + seed, *taken), generator=generator) * 0.3
            up = torch.randn((out, 2 + seed, *[1] * (len(taken) - 1)), generator=generator) * 0.3
            prefix = "lora_unet_" if network is self.network else f"lora_te{'1' if self.kind == 'sdxl' else ''}_"
            if self.kind == "sd3":
                tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
            else:
                known = layer if network is self.network else f"text_model.{layer.removeprefix('text_model.')}"
                key = prefix + known.replace(".", "_")
                tensors |= {
                    f"{key}.lora_down.weight": down,
                    f"{key}.lora_up.weight": up,
                    f"{key}.alpha": torch.tensor(1.5),
                }
        save_file(tensors, self.folder / f"{name}.safetensors")
        return str(self.folder / f"{name}.safetensors")

    def picture(self, weights: dict[str, float]) -> torch.Tensor:
        """What diffusers makes with files that it loads itself."""
        for i, file in enumerate(weights):
            self.pipe.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=f"lora{i}")
        if weights:
            self.pipe.set_adapters([f"lora{i}" for i in range(len(weights))], list(weights.values()))
        given = sd3_prompt() if self.kind == "sd3" else {"prompt": "a red cat", "height": 8, "width": 8}
        try:
            generator = torch.Generator().manual_seed(0)
            return self.pipe(**given, num_inference_steps=2, output_type="latent", generator=generator).images
        finally:
            if weights:
                self.pipe.unload_lora_weights()
