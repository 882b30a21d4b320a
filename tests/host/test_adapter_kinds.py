"""Every kind of adapter the host's reader knows: blended exactly as the host patches it, or better where the host is wrong."""

import math
import re

import comfy.lora
import comfy_adapters
import comfy_models
import nodes as host_nodes
import pytest
import torch
from adapter_kinds import APPLIED, NORM
from adapter_makers import (
    ALPHA,
    KERNEL,
    LINEAR,
    boft,
    dora,
    glora,
    kohya_key,
    locon_tucker,
    loha,
    loha_128,
    loha_tucker,
    lokr,
    lokr_128,
    lokr_of_five_axes,
    lora,
    oft,
    put,
    random,
    rs_lora,
    shape_of,
    slices_of,
)
from comfy_adapters import low_rank, write
from comfy_world import blend_model, difference, load_loras, preference
from dense_updates import assert_same, changes, fit, fitted, host_changes

DIFFUSERS = {
    LINEAR: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    KERNEL: "down_blocks.0.resnets.0.conv1",
}
NO_ALPHA = {"alpha": torch.tensor(0.0)}


@pytest.mark.parametrize("name", APPLIED)
def test_each_kind_is_the_change_that_the_host_makes(name):
    kind, tensors = APPLIED[name]
    ours, hosts, report = fitted(kind, tensors)
    assert hosts and not report.absent and not report.misshapen
    assert_same(ours, hosts)


def test_a_lokr_of_a_conv3d_is_the_hosts_image_and_said(worlds, folder):
    """ComfyUI multiplies its factors along other axes than LyCORIS."""
    wan = worlds("wan")
    write(folder, "five-axes", lokr_of_five_axes())
    loras = load_loras(["five-axes.safetensors"])
    expected = wan.sample(wan.patched.model(lokr_of_five_axes()), steps=1)
    assert difference(wan.sample(blend_model(wan.model, loras, preference(1)), steps=1), expected) < 1e-5
    assert difference(wan.sample(wan.model, steps=1), expected) > 1e-3
    _, report = fit(wan.model, lokr_of_five_axes())
    assert "1 of its lokr_w2 have three or five axes (diffusion_model.patch_embedding.weight)" in report.text()
    _, report = fit(
        wan.model,
        lokr_of_five_axes()
        | {
            "diffusion_model.text_embedding.0.lokr_w1": random(2, 3),
            "diffusion_model.text_embedding.0.lokr_w2": random(2, 3, 1),
        },
    )
    assert "its factors make 36 numbers" in report.text()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_weight_that_replaces_is_load_loras_at_any_strength(sd15, folder, strength):
    write(folder, "replaces", put(LINEAR, set_weight=random(320, 768)))
    expected = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd15.model, "replaces.safetensors", strength)[0]
    found = blend_model(sd15.model, load_loras(["replaces.safetensors"], [strength]), preference(1))
    assert difference(sd15.sample(found, steps=1), sd15.sample(expected, steps=1)) < 1e-5


def test_rs_lora_is_scaled_by_the_root_of_its_rank():
    updates, _ = fit(comfy_models.load("sd15"), rs_lora(LINEAR))
    up, down = low_rank(shape_of(LINEAR), 9, torch.Generator().manual_seed(9))
    ((pair,),) = updates.values()
    assert difference(pair.up @ pair.down, ALPHA / math.sqrt(9) * up @ down) < 1e-6


def test_images_are_those_of_the_hosts_patched_copy(sd3, loras_folder):
    tensors = {
        key.replace("blocks_0", f"blocks_{block}"): tensor
        for block, make in enumerate((loha_128, lokr_128))
        for key, tensor in slices_of(make).items()
    }
    write(loras_folder, "kinds", tensors)
    blended = blend_model(sd3.model, load_loras(["kinds.safetensors"]), preference(1.0))
    expected = sd3.sample(comfy_adapters.Patched("sd3").model(tensors), steps=2)
    assert difference(sd3.sample(blended, steps=2), expected) < 1e-5
    assert difference(sd3.sample(sd3.model, steps=2), expected) > 1e-3


def other_spelling(tensors):
    """Return the same layer under the host's generic name."""
    return {key.replace(kohya_key(LINEAR), f"diffusion_model.{LINEAR}"): tensor for key, tensor in tensors.items()}


TWICE = {
    "two kinds": lora(LINEAR) | loha(LINEAR),
    "two names of the layer": lora(LINEAR) | other_spelling(lora(LINEAR, rank=2)),
    "two spellings of the factors": lora(LINEAR)
    | put(LINEAR, lora_B__weight=random(320, 2), lora_A__weight=random(2, 768)),
    "a factor whole and in parts": lokr(LINEAR, "factored", "factored") | lokr(LINEAR, "whole", "factored"),
    "the second factor whole and in parts": lokr(LINEAR, "factored", "factored") | lokr(LINEAR, "factored", "whole"),
}


@pytest.mark.parametrize("name", TWICE)
def test_of_two_updates_of_one_layer_the_one_that_the_host_takes_is_applied_and_the_other_said(name):
    tensors = TWICE[name]
    ours, hosts, report = fitted("sd15", tensors, 1.0)
    assert set(hosts) == {f"diffusion_model.{LINEAR}.weight"}
    assert_same(ours, hosts)
    (key, *_) = report.second
    assert f"{len(report.second)} of its updates have no effect ({key}" in report.text()


def test_a_lokr_with_a_tucker_core_is_right_where_the_host_applies_nothing():
    tensors = lokr(KERNEL, "factored", "tucker")
    ours, hosts, _ = fitted("sd15", tensors, 1.0)
    assert not hosts  # if this fails, the host has learnt it, and the case belongs to those above
    part = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
    second = torch.einsum("rqkl,rc,qd->cdkl", part["lokr_t2"], part["lokr_w2_a"], part["lokr_w2_b"])
    first = part["lokr_w1_a"] @ part["lokr_w1_b"]
    expected = ALPHA / 3 * torch.kron(first[:, :, None, None].contiguous(), second.contiguous())
    assert_same(ours, {f"diffusion_model.{KERNEL}.weight": expected})


@pytest.mark.parametrize("ending", [".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".magnitude"])
@pytest.mark.parametrize("layer", [LINEAR, KERNEL])
def test_a_dora_in_pefts_spelling_is_right_where_the_host_leaves_the_magnitude_out(layer, ending):
    """``m (W + s B A) / ||W + s B A||`` by output: peft/tuners/lora/dora.py, and ai-toolkit."""
    up, down = low_rank(shape_of(layer), 4, torch.Generator().manual_seed(4))
    magnitude = random(320).abs()
    key = f"base_model.model.{DIFFUSERS[layer]}"
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}{ending}": magnitude}
    updates, _ = fit(comfy_models.load("sd15"), tensors)
    weight = comfy_models.state_dict("sd15")[f"{layer}.weight"]
    direction = weight + (up.flatten(1) @ down.flatten(1)).view_as(weight)
    factor = magnitude / direction.flatten(1).norm(dim=1)
    expected = factor.view(-1, *[1] * (weight.ndim - 1)) * direction - weight
    assert_same(
        changes(comfy_models.load("sd15").model, updates), {f"diffusion_model.{layer}.weight": expected}, tolerance=2e-5
    )


def test_a_boft_without_alpha_is_one_with_alpha_0_where_the_host_applies_nothing():
    ours, _, _ = fitted("sd15", boft(LINEAR, alpha=torch.tensor(0.0)), 1.0)
    without, _ = fit(comfy_models.load("sd15"), boft(LINEAR))
    assert_same(changes(comfy_models.load("sd15").model, without), ours)
    _, hosts, _ = fitted("sd15", boft(LINEAR), 1.0)
    assert not hosts


def test_a_layer_whose_shape_a_control_lora_changes_is_skipped_and_said():
    tensors = lora(LINEAR) | put(LINEAR, reshape_weight=torch.tensor([320, 1024])) | lora(KERNEL)
    updates, report = fit(comfy_models.load("sd15"), tensors)
    assert set(updates) == {f"diffusion_model.{KERNEL}"}
    assert "1 of 2 layers applied. Skipped: 1 of another shape" in report.text()
    assert "from [320, 768] to [320, 1024], as control LoRAs do, which have their effect on the MODEL" in report.text()


def test_a_parameter_that_is_stored_as_integers_is_skipped_and_said():
    model = comfy_models.load("sd3")
    network = model.model.diffusion_model
    tensors = {"diffusion_model.pos_embed.diff": random(1, 2304, 128)}
    pair = {
        f"diffusion_model.joint_blocks.0.x_block.mlp.fc1.{name}.weight": random(*shape)
        for name, shape in (("lora_up", (512, 2)), ("lora_down", (2, 128)))
    }
    held = network.pos_embed
    network.pos_embed = torch.zeros(held.shape, dtype=torch.uint8)
    try:
        updates, report = fit(model, tensors | pair)
        assert set(updates) == {"diffusion_model.joint_blocks.0.x_block.mlp.fc1"}
        assert "1 of 2 layers applied. Skipped: 1 for which the base has no readable weight" in report.text()
        assert "diffusion_model.pos_embed: its parameter has to be exchanged" in report.text()
        with pytest.raises(ValueError, match="none of its layers can be applied. Skipped: 1 .* stores it as uint8"):
            fit(model, tensors)
    finally:
        network.pos_embed = held


@pytest.mark.parametrize("make", [dora, oft, glora])
def test_a_kind_that_needs_weights_that_only_another_extension_can_read_is_skipped_and_said(make):
    """As on GGUF bases: the scales of the integers are in the extension's layers."""
    model = comfy_models.load("sd15")
    layer = model.model.get_submodule(f"diffusion_model.{LINEAR}")
    held, layer.weight = layer.weight, torch.nn.Parameter(torch.ones(320, 768, dtype=torch.int8), requires_grad=False)
    tensors = make(LINEAR, 0) if make is dora else make(LINEAR)
    try:
        if make is not oft:  # which multiplies the layer's output, and needs no weight
            updates, report = fit(model, tensors | lora(KERNEL))
            assert set(updates) == {f"diffusion_model.{KERNEL}"}
            assert "its kind needs the base's own weight, which this checkpoint stores as int8" in report.text()
        else:
            updates, report = fit(model, tensors)
            assert set(updates) == {f"diffusion_model.{LINEAR}"} and not report.unreadable
    finally:
        layer.weight = held


COMPLETE = {
    "LoRA": lora(LINEAR),
    "LoCon with a Tucker core": locon_tucker(KERNEL),
    "LoHa": loha(LINEAR),
    "LoHa with a Tucker core": loha_tucker(KERNEL),
    "LoKr": lokr(LINEAR, "whole", "factored"),
    "GLoRA": glora(LINEAR),
}
OPTIONAL = ("alpha", "lora_mid.weight")


@pytest.mark.parametrize("name", COMPLETE)
def test_a_file_that_lacks_any_one_of_its_tensors_is_refused(name):
    for key in COMPLETE[name]:
        if key.endswith(OPTIONAL):
            continue
        tensors = {other: tensor for other, tensor in COMPLETE[name].items() if other != key}
        with pytest.raises(ValueError, match=r"a\.safetensors: .*incomplete"):
            fitted("sd15", tensors)


CONTROL = {  # the host recognises Flux control adapters by the first two
    "img_in.lora_A.weight": random(2, 16),
    "single_blocks.0.norm.key_norm.scale": random(16),
    "img_in.lora_B.weight": random(128, 2),
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_in.lora_B.weight": None}, "the host cannot read it ('img_in.lora_B.weight'); the file is incomplete"),
        ({"img_in.lora_A.weight": random(2)}, "the host cannot read it (tuple index out of range)"),
        ({"img_in.lora_B.weight": torch.tensor(1.0)}, "the host cannot read it (tuple index out of range)"),
        (
            {},
            "none of its 2 layers fits this model, so it is made for another architecture (Flux); this model is SD15",
        ),
    ],
)
def test_what_the_host_would_stumble_over_while_it_renames_keys_is_refused(changes, message):
    """Found by `make fuzz`: the host's converters assume that the expected tensors are there and complete."""
    tensors = {key: tensor for key, tensor in (CONTROL | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=re.escape(f"a.safetensors: {message}")):
        fitted("sd15", tensors)


@pytest.mark.parametrize(
    "make, factors",
    [
        (locon_tucker, {"lora_mid__weight": random(8, 4, 3, 3), "lora_up__weight": random(320, 8, 1, 1)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 1, 1), "lora_down__weight": random(4, 320, 3, 3)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 9)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 3, 1, 3)}),
        (loha_tucker, {"hada_t1": random(3, 3, 9), "hada_t2": random(3, 3, 9)}),
    ],
    ids=["a core that is not square", "a kernel in down", "a core of three sides", "of five", "LoHa's of three"],
)
def test_a_core_that_the_host_cannot_apply_is_refused(make, factors):
    """Found by `make fuzz`: the shapes of the products fit, but the host stops with an error of torch."""
    tensors = make(KERNEL) | put(KERNEL, **factors)
    model = comfy_models.load("sd15")
    with pytest.raises(
        ValueError, match=r"a\.safetensors: .*factors have shapes .*not those of a Tucker decomposition"
    ):
        fit(model, tensors)
    with pytest.raises((RuntimeError, IndexError)):
        host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)


@pytest.mark.parametrize("name", ["LoRA", "LoHa", "LoHa with a Tucker core", "LoKr"])
def test_factors_too_large_for_floats_are_refused_though_alpha_makes_them_small(name):
    """Found by `make fuzz`: the host multiplies by alpha last, when its numbers are already infinite."""
    large = {key: tensor * (1e-30 if key.endswith("alpha") else 1e25) for key, tensor in COMPLETE[name].items()}
    with pytest.raises(
        ValueError, match=r"a\.safetensors: .*its factors make numbers as large as .*, more than a float"
    ):
        fitted("sd15", large)
    moderate = {key: tensor * (1e-8 if key.endswith("alpha") else 1e4) for key, tensor in COMPLETE[name].items()}
    ours, hosts, _ = fitted("sd15", moderate)
    assert_same(ours, hosts)


@pytest.mark.parametrize("name", ["LoHa", "LoHa with a Tucker core", "LoKr"])
def test_a_factor_of_another_shape_is_what_the_host_makes_of_it_or_refused(name):
    """The host applies a first LoKr factor of one or three axes, because its product has the weight's numbers."""
    applied = 0
    for key, tensor in COMPLETE[name].items():
        if key.endswith("alpha"):
            continue
        for wrong in (tensor.repeat(2, *[1] * (tensor.ndim - 1)), tensor[None], tensor.flatten(), tensor[:0]):
            tensors = COMPLETE[name] | {key: wrong}
            if name == "LoKr" and key.endswith("lokr_w1") and wrong.numel() == tensor.numel():
                ours, hosts, _ = fitted("sd15", tensors)
                assert_same(ours, hosts)
                applied += 1
                continue
            with pytest.raises(
                ValueError, match=r"a\.safetensors: .*(factors have shapes|its update is|its rank is 0)"
            ):
                fitted("sd15", tensors)
    assert applied == (2 if name == "LoKr" else 0)


def test_nothing_is_multiplied_out_before_it_is_known_to_fit():
    """A file of a few kilobytes that describes terabytes is refused by its shapes, before any product."""
    wide = torch.zeros(1, 1000)
    bombs = [
        put(LINEAR, lokr_w1=wide, lokr_w2=wide.expand(1, 1000)),
        put(LINEAR, lokr_w1=torch.zeros(1000, 1000), lokr_w2=torch.zeros(1000, 1000)),
        put(LINEAR, **{f"hada_w{i}_{s}": torch.zeros(1000, 1000) for i in (1, 2) for s in "ab"}),
        put(
            KERNEL,
            lora_up__weight=torch.zeros(320, 10**4),
            lora_mid__weight=torch.zeros(10**4, 1, 3, 3),
            lora_down__weight=torch.zeros(1, 10**6),
        ),
    ]
    for tensors in bombs:
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            fitted("sd15", tensors)


def test_half_of_the_layers_may_be_of_another_shape_and_one_more_may_not():
    good, bad = lora(LINEAR), {f"{kohya_key(layer)}.w_norm": random(64) for layer in (NORM, "out.0")}
    model = comfy_models.load("sd15")
    half = good | {f"{kohya_key(NORM)}.w_norm": random(64)}
    updates, report = fit(model, half)
    assert "1 of 2 layers applied. Skipped: 1 of another shape" in report.text()
    assert set(changes(model.model, updates)) == {f"diffusion_model.{LINEAR}.weight"}
    with pytest.raises(
        ValueError, match="only 1 of its 3 layers fits this model, so it is made for another architecture; this"
    ):
        fit(model, good | bad)


def test_an_alpha_of_a_dora_that_is_no_number_is_refused():
    """Found by the fuzzer: the update would be NaN."""
    tensors = dora(LINEAR, 0) | put(LINEAR, alpha=torch.tensor(math.nan))
    with pytest.raises(ValueError, match=r"a\.safetensors: .*its alpha is nan"):
        fit(comfy_models.load("sd15"), tensors)
