"""Every tensor of a file that has no effect is named, and so is every layer that is skipped."""

import comfy.lora
import comfy_models
import pytest
import tiny_text_encoders
import torch
from adapter_makers import random
from comfy_adapters import write
from comfy_world import difference, load_loras
from dense_updates import assert_same, changes, fit, host_changes
from diffusion_blend.nodes.text_encoder import BlendTextEncoder

PROJ = "diffusion_model.joint_blocks.0.x_block.attn.proj"
FC1 = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
PART = "transformer.transformer_blocks.0.attn."
SWAPPED = "transformer.norm_out.linear"


def pair(name, rows=128, columns=128, seed=1):
    down = random(4, columns, seed=seed) / columns**0.5
    return {f"{name}.lora_up.weight": random(rows, 4, seed=seed + 1) / 5, f"{name}.lora_down.weight": down}


def fitted(tensors):
    """Our changes, the host's, and the report."""
    model = comfy_models.load("sd3")
    updates, report = fit(model, tensors)
    hosts = host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)
    return changes(model.model, updates), hosts, report


UNREAD = {
    "a bias of a LoRA (PEFT's lora_bias)": {f"{PROJ}.lora_B.bias": random(128)},
    "PEFT's OFT": {f"{FC1}.oft_R.weight": random(8, 100)},
    "a diagonal OFT": {f"{PROJ}.oft_diag": random(8, 16, 16)},
    "LyCORIS' scalar": {f"{PROJ}.scalar": torch.tensor(0.5)},
    "IA3": {f"{FC1}.weight": random(512), f"{FC1}.on_input": torch.tensor(False)},
    "a sparse bias": {
        f"{PROJ}.bias_indices": torch.ones(1, 2, dtype=torch.int64),
        f"{PROJ}.bias_size": torch.ones(2, dtype=torch.int64),
        f"{PROJ}.bias_values": random(2),
    },
    "a norm's bias without its weight": {f"{PROJ}.b_norm": random(128)},
    "a DoRA scale without factors": {f"{FC1}.dora_scale": random(512, 1)},
    "a magnitude without factors": {f"{FC1}.lora_magnitude_vector": random(512)},
    "biases of slices": {f"{PART}to_k.diff_b": random(128), f"{PART}to_v.diff_b": random(128)},
    "a bias of swapped halves": {f"{SWAPPED}.diff_b": random(256)},
    "nobody's": {"some.other.thing": random(3)},
    "a weight of no layer's": {"diffusion_model.nowhere.weight": random(3, 3)},
}


@pytest.mark.parametrize("name", UNREAD)
def test_tensors_that_the_host_does_not_read_are_named_beside_layers_that_fit(name):
    more = UNREAD[name]
    ours, hosts, report = fitted(pair(PROJ) | {f"{PROJ}.alpha": torch.tensor(3.0)} | more)
    assert_same(ours, hosts)
    shown = ", ".join(sorted(more)[:2]) + (", ..." if len(more) > 2 else "")
    assert f"{len(more)} of its tensors have no effect ({shown}): " in report.text()
    assert "()" not in report.text()


def test_the_bias_of_a_norm_of_a_slice_is_named_beside_its_weight():
    key = f"{PART}to_q.b_norm"
    ours, hosts, report = fitted({f"{PART}to_q.w_norm": random(128, 128) / 10, key: random(128)})
    assert_same(ours, hosts)
    assert f"1 of its tensors have no effect ({key}): " in report.text()


def test_a_file_of_such_tensors_only_is_refused_with_their_names():
    keys = [f"{PART}to_{part}.diff_b" for part in "kq"]
    with pytest.raises(ValueError) as error:
        fit(comfy_models.load("sd3"), {key: random(128) for key in keys})
    assert "none of its 2 weights belongs to this model's diffusion network. 2 of its tensors" in str(error.value)
    assert f"({', '.join(keys)})" in str(error.value) and "()" not in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {f"{PROJ}.alpha": torch.tensor(3.0)},
        {f"{FC1}.alpha": torch.tensor(3.0)},
        {"lora_unet_gone.alpha": torch.tensor(3.0)},
        {f"{PROJ}.reshape_weight": torch.tensor([128, 128])},
        {f"{PROJ}.lora_magnitude_vector": random(128).abs()},
    ],
)
def test_tensors_that_go_with_an_update_are_not_named(more):
    *_, report = fitted(pair(PROJ) | more)
    assert not report.text()


def flat(name, layer, rows, columns):
    """A DoRA whose scale has one axis: a number for each output."""
    weight = comfy_models.state_dict("sd3")[f"{layer.removeprefix('diffusion_model.')}.weight"]
    return pair(name, rows, columns) | {f"{name}.dora_scale": weight.norm(dim=1) * (1 + random(rows).abs())}


def test_a_dora_scale_of_one_axis_is_what_the_host_makes_of_it_and_said():
    ours, hosts, report = fitted(flat(PROJ, PROJ, 128, 128))
    assert_same(ours, hosts)
    assert f"1 of its DoRA scales have one axis only ({PROJ}.weight): ComfyUI spreads such a scale" in report.text()


def test_a_dora_scale_of_one_axis_on_which_the_host_fails_is_skipped_and_said():
    ours, hosts, report = fitted(pair(PROJ) | flat(FC1, FC1, 512, 128))
    assert set(hosts) == {f"{PROJ}.weight"}
    assert_same(ours, hosts)
    assert "1 of 2 layers applied. Skipped: 1 of another shape" in report.text()
    assert f"{FC1}.weight: ComfyUI finds no way to apply it to a weight of [512, 128]: its dora_scale has one" in (
        report.text()
    )


def test_how_many_layers_fit_is_said_in_words():
    model = comfy_models.load("sd3")
    for count, words in ((1, "its only layer does not fit this model"), (3, "none of its 3 layers fits this model")):
        tensors = {key: value for number in range(count) for key, value in pair(f"lora_unet_gone_{number}").items()}
        with pytest.raises(ValueError, match=f"{words}, so it is made for another architecture; this model is SD3"):
            fit(model, tensors)


def test_the_miniature_is_named_well():
    from diffusion_blend.nodes.engine.miniature import load_model

    with pytest.raises(ValueError, match="fits this model, so .* this model is Miniature"):
        fit(load_model(), pair(PROJ) | pair(FC1, 512))


ENCODER = "text_encoders.clip_l.transformer.text_model.encoder.layers"


def text_file(clip):
    """A file for a text encoder of which one layer fits."""
    weight = clip.cond_stage_model.state_dict()[f"{ENCODER[14:]}.0.mlp.fc1.weight"]
    rows, columns = weight.shape
    good = pair(f"{ENCODER}.0.mlp.fc1", rows, columns)
    bad = {
        **pair(f"{ENCODER}.1.mlp.fc1", rows + 1, columns),
        **pair("lora_te1_text_model_encoder_layers_77_mlp_fc1", rows, columns),
        **pair("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q", 64, 64),
        f"{ENCODER}.0.mlp.fc1.lora_magnitude_vector": random(rows).abs(),
    }
    return good, bad


def test_what_of_a_text_encoder_is_skipped_is_said(loras_folder, caplog):
    clip = tiny_text_encoders.load("sdxl")
    good, bad = text_file(clip)
    write(loras_folder, "whole", good)
    write(loras_folder, "part", good | bad)
    encoded = []
    for name in ("whole", "part"):
        caplog.clear()
        with caplog.at_level("INFO", logger="diffusion_blend"):
            blended = BlendTextEncoder.execute(clip, load_loras([f"{name}.safetensors"])).args[0]
        encoded.append(blended.encode_from_tokens(clip.tokenize("a red circle")).others[0])
        assert f"With text-encoder weights: {name}." in caplog.text
        assert ("Skipped" in caplog.text) == (name == "part")
    assert difference(*encoded) == 0
    for words in (
        "part.safetensors: 1 of 4 layers applied. Skipped: 2 that this text encoder does not have "
        "(lora_te1_text_model_encoder_layers_77_mlp_fc1, text_encoders.t5xxl.transformer.encoder.block.0",
        "1 of another shape (clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight: its update is 65 x",
        f"1 of its tensors have no effect ({ENCODER}.0.mlp.fc1.lora_magnitude_vector)",
    ):
        assert words in caplog.text


def test_a_file_of_another_text_encoder_is_not_counted_among_those_with_weights(loras_folder, caplog):
    clip = tiny_text_encoders.load("sdxl")
    _, bad = text_file(clip)
    write(loras_folder, "none", {key: value for key, value in bad.items() if "magnitude" not in key})
    with caplog.at_level("INFO", logger="diffusion_blend"):
        assert BlendTextEncoder.execute(clip, load_loras(["none.safetensors"])).args[0] is clip
    assert "None of the adapters has weights for this text encoder" in caplog.text
    assert "none.safetensors: 0 of 3 layers applied" in caplog.text
