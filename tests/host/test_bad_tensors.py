"""Adapter files with bad tensors, or that fit a model in part: each is refused by name, or what is skipped is said."""

import logging

import comfy_adapters
import pytest
import torch
from comfy_adapters import kohya, write
from comfy_world import blend_model, difference, load_loras, preference


def damaged(change):
    """Change the first attention layer's factors of a good file."""
    tensors = kohya("sd3", 1)
    up = next(key for key in tensors if key.endswith("lora_up.weight"))
    change(tensors, up, up.replace("lora_up", "lora_down"))
    return tensors


def put(key, value):
    return lambda tensors, up, down: tensors.__setitem__({"up": up, "down": down}.get(key, key), value)


BAD_TENSORS = {
    "NaN": (put("up", torch.full((384, 4), torch.nan)), "holds NaN or infinite numbers"),
    "infinity": (put("down", torch.full((4, 128), torch.inf)), "holds NaN or infinite numbers"),
    "NaN of 8 bits": (
        put("up", torch.full((384, 4), torch.nan).to(torch.float8_e5m2)),
        "holds NaN or infinite numbers",
    ),
    "missing down": (lambda t, up, down: t.pop(down), "comes without lora_down.weight"),
    "alpha of two numbers": (
        put("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", torch.ones(2)),
        "alpha is a single number",
    ),
    "alpha NaN": (
        put("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", torch.tensor(torch.nan)),
        "its alpha is nan",
    ),
    "a difference with NaN": (
        put("diffusion_model.final_layer.linear.diff", torch.full((64, 128), torch.nan)),
        "holds NaN or infinite numbers",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_by_name_and_nothing_is_applied(sd3, loras_folder, name):
    change, message = BAD_TENSORS[name]
    write(loras_folder, "bad", damaged(change))
    before = sd3.sample(sd3.model)
    with pytest.raises(ValueError, match=message) as error:
        blend_model(sd3.model, load_loras(["bad.safetensors"]), preference(1.0))
    assert "bad.safetensors" in str(error.value)
    assert comfy_adapters.hooks_on(sd3.model) == 0
    assert torch.equal(sd3.sample(sd3.model), before)


LEFT_ALONE = {
    "rank 0": (lambda t, up, down: t.update({up: torch.zeros(384, 0), down: torch.zeros(0, 128)}), "its rank is 0"),
    "unequal ranks": (put("up", torch.ones(384, 3)), "no low-rank pair"),
    "one axis": (put("up", torch.ones(384)), "has the shape [384]"),
    "missing up": (lambda t, up, down: t.pop(up), "1 of its tensors have no effect"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_damaged_layer_that_the_host_leaves_alone_is_skipped_and_named(sd3, loras_folder, caplog, name):
    change, message = LEFT_ALONE[name]
    tensors = damaged(change)
    write(loras_folder, "damaged", tensors)
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        blended = blend_model(sd3.model, load_loras(["damaged.safetensors"]), preference(1.0))
    assert message in caplog.text and "damaged.safetensors" in caplog.text
    # The host's own result; the damaged layer is one of its many.
    assert difference(sd3.sample(blended), sd3.sample(sd3.patched.model(tensors))) < 1e-5
    assert difference(sd3.sample(blended), sd3.sample(sd3.patched.model(kohya("sd3", 1)))) > 1e-4


def test_an_adapter_for_another_architecture_is_refused(sd3, sd15, loras_folder):
    with pytest.raises(
        ValueError, match=r"sd15-0\.safetensors: none of its \d+ layers fits this model.*\(SD 1.5\).*is SD3"
    ):
        blend_model(sd3.model, load_loras([sd15.files[0]]), preference(1.0))
    wider = {key: tensor.repeat(1, 2) if "lora_down" in key else tensor for key, tensor in sd15.adapters[0].items()}
    write(loras_folder, "wider", wider)
    with pytest.raises(ValueError, match=r"wider\.safetensors: none of .*another architecture.* of another shape"):
        blend_model(sd15.model, load_loras(["wider.safetensors"]), preference(1.0))


PARTS = {
    "layers that are not there": (
        {
            f"lora_unet_no_such_layer_{i}.lora_{part}.weight": torch.ones(4, 4)
            for i in range(2)
            for part in ("up", "down")
        },
        "Skipped: 2 that this model does not have (lora_unet_no_such_layer_0, lora_unet_no_such_layer_1)",
    ),
    "a layer of another shape": (
        {
            "diffusion_model.x_embedder.proj.lora_B.weight": torch.ones(128, 2, 1, 1),
            "diffusion_model.x_embedder.proj.lora_A.weight": torch.ones(2, 24, 2, 2),
        },
        "Skipped: 1 of another shape (diffusion_model.x_embedder.proj.weight: its update is 128 x 96, but the layer's weight "
        "is 128 x 64)",
    ),
    "text encoders": (
        {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{part}.weight": torch.tensor(torch.nan) for part in "ab"},
        "also holds 2 text-encoder weights",
    ),
    "extras": (
        {
            "diffusion_model.joint_blocks.0.x_block.attn.qkv.bias_indices": torch.ones(2, 3, dtype=torch.int16),
            "lora_unet_gone.alpha": torch.tensor(torch.nan),
            "some.other.thing": torch.zeros(3, dtype=torch.int64),
        },
        "2 of its tensors have no effect (diffusion_model.joint_blocks.0.x_block.attn.qkv.bias_indices, some.other.thing): ",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_part_that_fits_is_applied_and_what_is_skipped_is_said(sd3, loras_folder, caplog, name):
    more, message = PARTS[name]
    write(loras_folder, "part", sd3.adapters[0] | more)
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        blended = blend_model(sd3.model, load_loras(["part.safetensors"]), preference(1.0))
    assert message in caplog.text and "part.safetensors" in caplog.text
    assert difference(sd3.sample(blended), sd3.sample(sd3.patched.model(sd3.adapters[0]))) < 1e-5
