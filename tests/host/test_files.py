"""Adapter files: every naming that the host reads, and what their headers say."""

import json
import logging

import comfy_adapters
import comfy_models
import pytest
import torch
from comfy_adapters import ATTENTION, CONVOLUTIONS, JOINT, kohya, layers, low_rank, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.inputs import LoadRewardLoRAs


def renamed(tensors, rename):
    return {rename(key): tensor for key, tensor in tensors.items()}


def module_of(key):
    """Return module and ending of lora_unet_<module>.<ending>."""
    module, ending = key.split(".", 1)
    return module.removeprefix("lora_unet_"), ending


def generic(kind, seed, endings):
    """Return PEFT endings on the checkpoint's own names: diffusion_model.<layer>.lora_A/B.weight, without alpha."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layers(kind, endings).items():
        up, down = low_rank(shape, 3, generator)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up
        tensors[f"diffusion_model.{name}.lora_A.weight"] = down
    return tensors


def diffusers_names(kind):
    """Return the host's table: diffusers' weight name -> the network's (with a slice for a fused weight)."""
    import comfy.utils

    config = comfy_models.load(kind).model.model_config.unet_config
    return comfy.utils.unet_to_diffusers(config) if kind != "sd3" else comfy.utils.mmdit_to_diffusers(config)


def kohya_diffusers(seed):
    """Return kohya's naming over diffusers' layer names, as in most SD 1.5 files."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd15")
    tensors = {}
    for theirs, ours in diffusers_names("sd15").items():
        if (
            theirs.endswith(("to_q.weight", "to_v.weight", "conv1.weight", "to_out.0.weight", "ff.net.2.weight"))
            and ours in shapes
        ):
            key = "lora_unet_" + theirs.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = low_rank(
                shapes[ours].shape, 4, generator
            )
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return tensors


def diffusers_processor(seed):
    """Return the naming of diffusers' attention processors: unet.<...>.processor.to_q_lora.up.weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd15")
    tensors = {}
    for theirs, ours in diffusers_names("sd15").items():
        if theirs.endswith(("to_q.weight", "to_out.0.weight")) and ours in shapes:
            key = "unet." + theirs.removesuffix(".weight").replace(".to_", ".processor.to_").removesuffix(".0")
            tensors[f"{key}_lora.up.weight"], tensors[f"{key}_lora.down.weight"] = low_rank(
                shapes[ours].shape, 4, generator
            )
    return tensors


def sd3_slices(seed):
    """Return diffusers' separate to_q, to_k, to_v of SD3, which are slices of the host's fused qkv, and its swapped final
    modulation."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd3")
    tensors = {}
    for theirs, ours in diffusers_names("sd3").items():
        if not theirs.endswith(".weight") or not theirs.startswith(("transformer_blocks", "norm_out")):
            continue
        name = ours if isinstance(ours, str) else ours[0]
        if name not in shapes or shapes[name].ndim != 2:
            continue
        shape = (
            shapes[name].shape
            if isinstance(ours, str) or ours[1] is None
            else torch.Size([ours[1][2], shapes[name].shape[1]])
        )
        key = "transformer." + theirs.removesuffix(".weight")
        tensors[f"{key}.lora_B.weight"], tensors[f"{key}.lora_A.weight"] = low_rank(shape, 3, generator)
    return tensors


def tucker(seed):
    """Make a LoCon with a Tucker core: down 1x1, mid k x k, up 1x1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layers("sd15", ("in_layers.2", "out_layers.3")).items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, shape[1], 1, 1, generator=generator) / shape[1] ** 0.5
        tensors[f"{key}.lora_mid.weight"] = torch.randn(4, 4, *shape[2:], generator=generator) / 6
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], 4, 1, 1, generator=generator) * 0.2
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    return tensors


def mixed_linear_shapes(seed):
    """Store linear layers' factors as 1x1 convolutions, and the reverse. The host only looks at the product."""
    tensors = kohya("sd15", seed, endings=("attn1.to_q", "proj_in"))
    return {key: tensor[..., None, None] if "to_q" in key else tensor.flatten(1) for key, tensor in tensors.items()}


FILES = {
    "kohya": ("sd15", lambda: kohya("sd15", 11)),
    "kohya, diffusers' layer names": ("sd15", lambda: kohya_diffusers(12)),
    "diffusers' attention processors": ("sd15", lambda: diffusers_processor(13)),
    "PEFT endings": ("sd15", lambda: generic("sd15", 14, ATTENTION)),
    "LoCon convolutions": ("sd15", lambda: kohya("sd15", 15, endings=CONVOLUTIONS, alpha=1)),
    "LoCon with a Tucker core": ("sd15", lambda: tucker(16)),
    "shapes of the other layer kind": ("sd15", lambda: mixed_linear_shapes(17)),
    "half precision": ("sd15", lambda: {key: tensor.half() for key, tensor in kohya("sd15", 18).items()}),
    "negative alpha": ("sd15", lambda: kohya("sd15", 19, alpha=-2)),
    "alpha 0": ("sd15", lambda: kohya("sd15", 20, alpha=0)),
    "fused qkv": ("sd3", lambda: kohya("sd3", 21, endings=JOINT)),
    "slices of a fused qkv": ("sd3", lambda: sd3_slices(22)),
    "PEFT endings on a transformer": ("sd3", lambda: generic("sd3", 23, JOINT)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_naming_equals_the_hosts_own_patching(worlds, loras_folder, name):
    kind, make = FILES[name]
    world = worlds(kind)
    tensors = make()
    assert tensors
    write(loras_folder, "file", tensors)
    blended = blend_model(world.model, load_loras(["file.safetensors"]), preference(1.0))
    expected = world.sample(comfy_adapters.Patched(kind).model(tensors))  # a copy that ends with the test
    assert difference(world.sample(blended), expected) < 1e-5
    if name != "alpha 0":
        assert difference(world.sample(world.model), expected) > 1e-3


def test_slices_reach_all_three_parts_of_the_qkv():
    keys = sd3_slices(0)
    assert {
        part for part in ("to_q", "to_k", "to_v", "add_q_proj", "norm_out") if any(part in key for key in keys)
    } == {
        "to_q",
        "to_k",
        "to_v",
        "add_q_proj",
        "norm_out",
    }


def test_the_name_is_the_metadatas_reward_or_the_files(loras_folder):
    write(loras_folder, "plain", kohya("sd3", 1))
    write(
        loras_folder,
        "tuned",
        kohya("sd3", 1),
        {"diffusion_blend.reward": "aesthetic", "diffusion_blend.kl_weight": "0.25"},
    )
    loras = load_loras(["plain.safetensors", "tuned.safetensors"])
    assert loras.names == ["plain", "aesthetic"]
    assert loras.kl_weights == [None, 0.25]


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"unet.r": 8, "unet.lora_alpha": 16}, 2),
        ({"transformer.r": 16, "transformer.lora_alpha": 8, "transformer.use_rslora": True}, 2),
        ({"unet.r": 8, "unet.lora_alpha": 8}, None),
        ({"text_encoder.r": 8, "text_encoder.lora_alpha": 16}, None),
        ({"unet.r": 0, "unet.lora_alpha": 16}, None),
        (["no object"], None),
    ],
)
def test_a_scale_that_only_the_header_has_is_said(sd3, loras_folder, caplog, settings, factor):
    write(loras_folder, "peft", kohya("sd3", 1), {"lora_adapter_metadata": json.dumps(settings)})
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        blend_model(sd3.model, load_loras(["peft.safetensors"]), preference(1.0))
    assert ("in Load Reward LoRAs, or set its strength to 2" in caplog.text) == (factor == 2)
    assert ("alpha / rank" in caplog.text) == (factor is not None)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"unet.r": 8, "unet.lora_alpha": 20, "text_encoder.r": 8, "text_encoder.lora_alpha": 4}, 2.5),
        ({"transformer.r": 16, "transformer.lora_alpha": 2, "transformer.use_rslora": True}, 0.5),
        ({"unet.r": 8, "unet.lora_alpha": 16, "unet.rank_pattern": {"to_k": 4}}, 1),
        ({}, 1),
    ],
)
def test_the_scale_of_the_header_is_applied_where_it_is_chosen(sd3, loras_folder, caplog, settings, factor):
    write(loras_folder, "scaled", kohya("sd3", 1), {"lora_adapter_metadata": json.dumps(settings)})
    write(loras_folder, "plain", kohya("sd3", 1))
    loras = LoadRewardLoRAs.execute(lora_1="scaled.safetensors", strength_1=0.6, scale="as trained").args[0]
    expected = sd3.sample(blend_model(sd3.model, load_loras(["plain.safetensors"], [0.6 * factor]), preference(1.0)))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        assert difference(sd3.sample(blend_model(sd3.model, loras, preference(1.0))), expected) < 1e-6
    assert "alpha / rank" not in caplog.text
    (adapter,) = loras
    assert adapter.strength == 0.6
    assert adapter.text_strength == pytest.approx(0.3 if "text_encoder.r" in settings else 0.6)
    as_comfyui = LoadRewardLoRAs.execute(lora_1="scaled.safetensors", strength_1=0.6, scale="as ComfyUI").args[0]
    assert [adapter.network_strength for adapter in as_comfyui] == [0.6]


def test_a_title_in_the_header_is_the_name(loras_folder):
    write(loras_folder, "titled", kohya("sd3", 1), {"modelspec.title": "Film  grain\n"})
    assert load_loras(["titled.safetensors"]).names == ["Film grain"]
