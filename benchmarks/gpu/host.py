"""Starts the host in this process, and makes networks of true or small size with random weights on the device."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import comfy_hosts
import torch
from torch import Tensor


def start(*, cpu: bool, dynamic_vram: bool = False, **flags: Any) -> Any:
    """Import the host as its own ``main.py`` does, up to its nodes.

    Args:
        cpu: the host's ``--cpu``.
        dynamic_vram: use the host's dynamic patcher; needs an NVIDIA card, and comfy-aimdo (`dynamic_vram.py` starts it).
        flags: further options of the host by their attribute's name, such as ``novram=True``.

    Returns:
        The device on which the host computes.

    Raises:
        SystemExit: there is no host, it lacks an option, or dynamic VRAM does not start.
    """
    hosts = comfy_hosts.find_hosts()
    if not hosts:
        raise SystemExit(comfy_hosts.HOW_TO_GET_ONE)
    sys.path.insert(0, str(hosts[0]))
    import comfy.cli_args

    options = comfy.cli_args.args
    for name, value in {"cpu": cpu, "disable_dynamic_vram": not dynamic_vram, **flags}.items():
        if not hasattr(options, name):
            raise SystemExit(f"{comfy_hosts.title(hosts[0])} has no option {name!r}.")
        setattr(options, name, value)
    if dynamic_vram:
        import comfy_aimdo.control

        if comfy_aimdo.control.lib is None:
            raise SystemExit("comfy-aimdo must start before torch: run dynamic_vram.py instead of this program.")
    import comfy.model_management
    import comfy.utils

    if dynamic_vram:
        _use_dynamic_patcher(int(options.vram_headroom * 2**30))
    comfy.utils.PROGRESS_BAR_ENABLED = False
    logging.getLogger().setLevel(logging.WARNING)
    return comfy.model_management.get_torch_device()


def _use_dynamic_patcher(headroom: int) -> None:
    """The part of the host's ``main.py`` that switches dynamic VRAM on; ``headroom`` is in bytes."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    devices = comfy.model_management.get_all_torch_devices()
    ready = comfy_aimdo.control.init_devices((device.index, headroom) for device in devices)
    if not ready:
        raise SystemExit("comfy-aimdo did not start on this machine: dynamic VRAM cannot be measured.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def has_option(name: str) -> bool:
    """Return whether the newest host knows an option, by its attribute's name. Call `start` first."""
    import comfy.cli_args

    return hasattr(comfy.cli_args.args, name)


def sd35m() -> dict[str, Any]:
    """Stable Diffusion 3.5 medium: SD3's 24 blocks, the first 13 with a second attention, normalized queries and keys."""
    from true_size import SD3

    return SD3 | {
        "qk_norm": "rms",
        "x_block_self_attn_layers": list(range(13)),
        "pos_embed_max_size": 384,
        "num_patches": 384 * 384,
    }


def network(kind: str, *, tiny: bool) -> tuple[str, Any, dict[str, Any]]:
    """The tests' name of an architecture, the host's class and its settings.

    Args:
        kind: ``sd15``, ``sdxl`` or ``sd35m``.
        tiny: the tests' small network of that architecture instead of the true size.
    """
    import comfy_models
    import true_size

    family = "sd3" if kind == "sd35m" else kind
    build, small = comfy_models._NETWORKS[family]
    true = sd35m() if kind == "sd35m" else true_size.TRUE[kind]
    return family, build, small if tiny else true


def shapes(kind: str, *, tiny: bool) -> dict[str, Tensor]:
    """The network's tensors without storage, by their names."""
    import comfy.ops

    _, build, config = network(kind, tiny=tiny)
    made = build(**config, operations=comfy.ops.disable_weight_init, device=torch.device("meta"))
    return dict(made.state_dict())


def weights(kind: str, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> dict[str, Tensor]:
    """Random weights of unit gain and norms near 1, made on the device.

    Args:
        kind: the architecture.
        device: where they are made.
        dtype: of floating-point weights.
        tiny: the tests' small network instead of the true size.
    """
    generator, result = torch.Generator(device).manual_seed(0), {}
    for name, shape in shapes(kind, tiny=tiny).items():
        tensor = torch.zeros(shape.shape, device=device, dtype=dtype if shape.is_floating_point() else shape.dtype)
        if shape.is_floating_point():
            if tensor.ndim > 1:
                tensor.normal_(0, 1 / math.sqrt(tensor[0].numel()), generator=generator)
            elif name.endswith("weight"):
                tensor.normal_(1, 0.05, generator=generator)
            else:
                tensor.normal_(0, 0.05, generator=generator)
        result[name] = tensor
    return result


def load(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> Any:
    """A MODEL of its own, as the host's loader makes it.

    Raises:
        SystemExit: the host does not recognize the network.
    """
    import comfy.sd

    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(dict(tensors), model_options=options)
    if model is None:
        raise SystemExit("This ComfyUI does not recognize the network.")
    return model


ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
             "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")  # fmt: skip
JOINT = ("attn.qkv", "attn.proj")


def adapter(kind: str, seed: int, rank: int, device: torch.device, *, tiny: bool) -> dict[str, Tensor]:
    """A LoRA in kohya's naming on all attention projections, about 0.4 times as large as the weights.

    Args:
        kind: the architecture.
        seed: of its numbers.
        rank: of each update.
        device: where the numbers are made; the result lies on the CPU, in float32.
        tiny: the adapter of the tests' small network.
    """
    endings = tuple(f"{ending}.weight" for ending in (JOINT if kind == "sd35m" else ATTENTION))
    generator, result = torch.Generator(device).manual_seed(1000 + seed), {}
    for name, weight in shapes(kind, tiny=tiny).items():
        if not name.endswith(endings):
            continue
        prefix = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        down = torch.randn(rank, weight.shape[1], device=device, generator=generator) / math.sqrt(weight.shape[1])
        up = torch.randn(weight.shape[0], rank, device=device, generator=generator) * (0.4 / math.sqrt(rank))
        result[f"{prefix}.lora_up.weight"], result[f"{prefix}.lora_down.weight"] = up.cpu(), down.cpu()
    return result


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
