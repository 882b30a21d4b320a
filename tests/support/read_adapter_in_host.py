"""Read adapter files with a ComfyUI's own reader, in a process of its own.

``python read_adapter_in_host.py HOST OUT ADAPTER ...`` writes, for each file, the changes of all weights by their diffusers
names into a file of the same name in the folder OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(host: str, out: str, *adapters: str) -> None:
    sys.path.insert(0, host)
    sys.argv = ["read", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils
    import comfy_models
    import torch
    from safetensors.torch import save_file

    model = comfy_models.load("sd15").model
    names = {new: old for old, new in comfy.utils.unet_to_diffusers(model.model_config.unet_config).items()}
    weights = model.state_dict()
    for adapter in adapters:
        state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(adapter, safe_load=True))
        patches = comfy.lora.load_lora(state, comfy.lora.model_lora_keys_unet(model, {}))
        changes = {}
        for key, patch in patches.items():
            zeros = torch.zeros_like(weights[key], dtype=torch.float32)
            changed = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], zeros, key)
            changes[names[key.removeprefix("diffusion_model.")].removesuffix(".weight")] = changed.contiguous()
        save_file(changes, Path(out) / Path(adapter).name)


if __name__ == "__main__":
    main(*sys.argv[1:])
