"""Files that the host applies by the arithmetic of its own patching: other shapes, biases, norms and other parameters."""

import comfy.lora
import comfy_adapters
import comfy_models
import pytest
import torch
from adapter_makers import random
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference
from dense_updates import assert_same, fit, fitted, host_changes

PROJ = "diffusion_model.joint_blocks.0.x_block.attn.proj"  # 128 x 128
FC1 = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"  # 512 x 128
KERNEL = "diffusion_model.x_embedder.proj"  # 128 x 16 x 2 x 2
SLICE = "transformer.transformer_blocks.0.attn.to_k"  # 128 x 128 of 384 x 128
SWAPPED = "transformer.norm_out.linear"  # 256 x 128, whose halves the host swaps
BIAS = f"{FC1}.bias"
NORM = "diffusion_model.input_blocks.1.0.in_layers.0"  # 320, of SD 1.5
RMS = "diffusion_model.blocks.0.self_attn.norm_q"  # 128, of Wan


def named(layer, **factors):
    """Keys for one layer. Two underscores in a name mean a dot."""
    return {f"{layer}.{name.replace('__', '.')}": tensor for name, tensor in factors.items()}


def lora(layer, rows, columns, rank=4):
    """A LoRA of some sides, with an alpha."""
    up, down = random(rows, rank, seed=1) / 5, random(rank, columns, seed=2) / columns**0.5
    return named(layer, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(3.0))


def loha(layer, *sides):
    """A LoHa of two products of some sides."""
    factors = {}
    for number, (rows, columns) in enumerate(sides, 1):
        factors[f"hada_w{number}_a"] = random(rows, 3, seed=number)
        factors[f"hada_w{number}_b"] = random(3, columns, seed=number) / 10
    return named(layer, **factors)


def dora(layer, sides, *scale, make=lora):
    """A DoRA whose scale has any shape."""
    return make(layer, *sides) | named(layer, dora_scale=1 + random(*scale, seed=3).abs())


APPLIED = {
    "a DoRA scale of the whole matrix": dora(FC1, (512, 128), 512, 128),
    "a DoRA scale of one number": dora(FC1, (512, 128), 1) | dora(PROJ, (128, 128), 1, 1),
    "a DoRA scale of a convolution's whole weight": dora(KERNEL, (128, 64), 128, 16, 2, 2),
    "a DoRA scale by output and row of the kernel": dora(KERNEL, (128, 64), 128, 1, 2, 1),
    "a DoRA scale by column of the kernel": dora(KERNEL, (128, 64), 2),
    "a DoRA scale of a slice's whole matrix": dora(SLICE, (128, 128), 128, 128),
    "a DoRA scale of a whole matrix with swapped halves": dora(SWAPPED, (256, 128), 256, 128),
    "a DoRA scale of a LoHa's whole matrix": dora(PROJ, ((128, 128), (128, 128)), 128, 128, make=loha),
    "a DoRA scale of an OFT's whole matrix": named(
        PROJ, oft_blocks=random(8, 16, 16) / 20, alpha=torch.tensor(1.0), dora_scale=1 + random(128, 128).abs()
    ),
    "a replaced weight of one row": named(FC1, set_weight=random(128)),
    "a replaced weight of one column": named(FC1, set_weight=random(512, 1)),
    "a replaced weight of one number": named(FC1, set_weight=torch.tensor(0.1)) | named(PROJ, set_weight=random(1, 1)),
    "a replaced weight of integers": named(PROJ, set_weight=torch.ones(128, dtype=torch.int8)),
    "a replaced convolution of one kernel": named(KERNEL, set_weight=random(1, 16, 2, 2)),
    "a replaced row of a slice": named(SLICE, set_weight=random(128)),
    "a LoRA of a bias": lora(BIAS, 512, 1) | lora(f"{PROJ}.bias", 8, 16),
    "a LoHa of a bias": loha(BIAS, (512, 1), (512, 1)),
    "a LoKr of a bias": named(BIAS, lokr_w1=random(8, 1), lokr_w2=random(64, 1) / 5),
    "an OFT of a bias": named(BIAS, oft_blocks=random(8, 64, 64) / 20),
    "a DoRA of a bias": dora(BIAS, (512, 1), 512),
    "a difference of a bias by its own name": named(BIAS, diff=random(512)),
    "a replaced bias": named(BIAS, set_weight=random(512)) | named(f"{PROJ}.bias", set_weight=torch.tensor(0.3)),
    "a LoRA of a parameter of no layer": lora("diffusion_model.pos_embed", 2304, 128),
    "a LoRA of other sides": lora(PROJ, 64, 256) | lora(KERNEL, 64, 128) | lora(SLICE, 256, 64),
    "a LoRA of other sides with swapped halves": lora(SWAPPED, 128, 256),
    "a LoHa of other sides": loha(PROJ, (64, 256), (64, 256)),
    "a LoHa of a matrix and a column": loha(PROJ, (128, 128), (128, 1)),
    "a LoKr of other sides": named(PROJ, lokr_w1=random(8, 4), lokr_w2=random(8, 64) / 5),
    "a LoKr of three axes": named(PROJ, lokr_w1=random(1, 4, 4), lokr_w2=random(32, 32) / 5),
    "a LoKr of a number and a matrix": named(PROJ, lokr_w1=torch.tensor(0.5), lokr_w2=random(128, 128) / 5),
    "a LoKr of a matrix and a number": named(PROJ, lokr_w1=random(128, 128) / 5, lokr_w2=torch.tensor(0.5)),
    "a LoKr that divides the kernel": named(KERNEL, lokr_w1=random(8, 32), lokr_w2=random(16, 2) / 5),
}
OF_OTHER_MODELS = {
    "a LoRA of a norm": ("sd15", lora(NORM, 320, 1)),
    "a LoKr of a norm": ("sd15", named(NORM, lokr_w1=random(8, 1), lokr_w2=random(40, 1) / 5)),
    "a replaced norm of one number": ("sd15", named(NORM, set_weight=torch.tensor(0.9))),
    "a LoRA of an RMS norm": ("wan", lora(RMS, 128, 1)),
    "a LoRA of a block's own parameter": ("wan", lora("diffusion_model.blocks.0.modulation", 6, 128)),
}
CASES = {name: ("sd3", tensors) for name, tensors in APPLIED.items()} | OF_OTHER_MODELS


@pytest.mark.parametrize("name", CASES)
def test_what_the_host_makes_of_it_is_applied(name):
    kind, tensors = CASES[name]
    for strength in (1.0, 0.7):
        ours, hosts, report = fitted(kind, tensors, strength)
        assert hosts and not report.misshapen and not report.absent and not report.unread
        assert_same(ours, hosts)


WITHOUT_EFFECT = {
    "a DoRA scale of two axes on a convolution": dora(KERNEL, (128, 64), 128, 1),
    "a DoRA scale with an axis too many": dora(FC1, (512, 128), 1, 512, 128),
    "a DoRA scale of a norm by input": dora(BIAS, (512, 1), 1, 512),
    "a LoRA of too many numbers": lora(FC1, 512, 129),
    "a LoRA of a bias of too few numbers": lora(BIAS, 256, 1),
    "zeros for another layer": {key: tensor * 0 for key, tensor in lora(FC1, 512, 256).items()},
    "a difference of one row": named(FC1, diff=random(128)),
    "a LoRA of a factor with one axis": named(FC1, lora_up__weight=random(512), lora_down__weight=random(1, 128)),
    "a LoRA of a factor that is one number": named(
        FC1, lora_up__weight=random(512, 1), lora_down__weight=torch.tensor(1.0)
    ),
    "a LoRA of unequal ranks": named(FC1, lora_up__weight=random(512, 3), lora_down__weight=random(4, 128)),
    "a LoRA of unequal ranks and sides": named(FC1, lora_up__weight=random(512, 3), lora_down__weight=random(4, 100)),
    "a LoRA of rank 0": named(FC1, lora_up__weight=torch.zeros(512, 0), lora_down__weight=torch.zeros(0, 128)),
    "a DoRA scale that is one number without an axis": lora(FC1, 512, 128) | named(FC1, dora_scale=torch.tensor(1.3)),
}
LONE = {
    "a lone down": named(FC1, lora_down__weight=random(4, 128)),
    "a lone second factor of a LoHa": named(FC1, hada_w1_b=random(3, 128)),
    "a lone second factor of a GLoRA": named(FC1, a2__weight=random(4, 128)),
}
FAILS = {
    "a lone up": (named(FC1, lora_up__weight=random(512, 4)), "comes without lora_down.weight"),
    "a lone first factor of a LoHa": (named(FC1, hada_w1_a=random(512, 3)), "comes without hada_w1_b"),
    "a lone LoKr": (named(FC1, lokr_w1=random(16, 4)), "it holds no lokr_w2"),
    "an alpha of two numbers": (lora(FC1, 512, 128) | named(FC1, alpha=torch.ones(2)), "alpha is a single number"),
    "a core of one axis": (lora(FC1, 512, 128) | named(FC1, lora_mid__weight=random(4)), "its factors have shapes"),
    "a LoHa of unequal ranks": (
        named(
            FC1, hada_w1_a=random(512, 2), hada_w1_b=random(3, 128), hada_w2_a=random(512, 1), hada_w2_b=random(1, 128)
        ),
        "its factors have shapes",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_the_host_leaves_alone_is_skipped_by_name(name):
    ours, hosts, report = fitted("sd3", lora(PROJ, 128, 128) | WITHOUT_EFFECT[name], 1.0)
    assert set(hosts) == {f"{PROJ}.weight"}
    assert_same(ours, hosts)
    assert "1 of 2 layers applied. Skipped: 1 of another shape (diffusion_model." in report.text()


@pytest.mark.parametrize("name", LONE)
def test_half_an_update_that_the_host_does_not_read_is_named(name):
    ours, hosts, report = fitted("sd3", lora(PROJ, 128, 128) | LONE[name], 1.0)
    assert set(hosts) == {f"{PROJ}.weight"}
    assert_same(ours, hosts)
    assert f"1 of its tensors have no effect ({next(iter(LONE[name]))})" in report.text()


@pytest.mark.parametrize("name", FAILS)
def test_what_stops_the_host_is_refused_by_name(name):
    tensors, message = FAILS[name]
    tensors = lora(PROJ, 128, 128) | tensors
    model = comfy_models.load("sd3")
    with pytest.raises(ValueError, match=rf"a\.safetensors: .*{message}"):
        fit(model, tensors)
    with pytest.raises((KeyError, AttributeError, RuntimeError, IndexError)):
        host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)


def test_a_factor_that_is_one_number_and_no_matrix_is_refused():
    """Found by the fuzzer."""
    tensors = named(PROJ, lokr_w1=random(4, 4), lokr_w2_a=random(32, 2), lokr_w2_b=torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"a\.safetensors: .*a factor of it is a single number"):
        fit(comfy_models.load("sd3"), tensors)


def test_a_replaced_weight_that_stops_the_host_is_skipped_by_name():
    tensors = lora(PROJ, 128, 128) | named(FC1, set_weight=random(1, 512, 128))
    model = comfy_models.load("sd3")
    updates, report = fit(model, tensors)
    assert set(updates) == {PROJ}
    assert f"{FC1}.weight: it replaces a weight of [1, 512, 128], but the model's part is [512, 128]" in report.text()
    with pytest.raises(RuntimeError):
        host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)


def test_an_image_is_that_of_the_hosts_patched_copy(sd3, loras_folder):
    names = "a DoRA scale of the whole matrix", "a replaced row of a slice", "a LoRA of a bias", "a LoKr of three axes"
    tensors = {key: tensor for name in names for key, tensor in APPLIED[name].items()}
    write(loras_folder, "arithmetic", tensors)
    blended = blend_model(sd3.model, load_loras(["arithmetic.safetensors"]), preference(1.0))
    expected = sd3.sample(comfy_adapters.Patched("sd3").model(tensors), steps=1)
    assert difference(sd3.sample(blended, steps=1), expected) < 1e-5
    assert difference(sd3.sample(sd3.model, steps=1), expected) > 1e-3
