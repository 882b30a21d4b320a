"""Files that name one layer twice: the update that ComfyUI applies counts, and the other is named."""

import comfy.lora
import comfy_models
import pytest
from adapter_makers import random
from dense_updates import assert_same, changes, fit, host_changes

PROJ = "joint_blocks.0.x_block.attn.proj"
QKV = "joint_blocks.0.x_block.attn.qkv"
KOHYA = "lora_unet_joint_blocks_0_x_block_attn_proj"


def pair(name, rows=128, seed=1):
    down = random(4, 128, seed=seed) / 128**0.5
    return {f"{name}.lora_up.weight": random(rows, 4, seed=seed + 1) / 5, f"{name}.lora_down.weight": down}


def fitted(tensors):
    """Our changes, the host's, and the report's text."""
    model = comfy_models.load("sd3")
    updates, report = fit(model, tensors)
    hosts = host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)
    return changes(model.model, updates), hosts, report.text()


@pytest.mark.parametrize("host_first", [True, False])
@pytest.mark.parametrize(
    "hosts_name, our_name",
    [
        (KOHYA, f"transformer.{PROJ}"),
        (f"diffusion_model.{PROJ}", f"model.diffusion_model.{PROJ}"),
        (KOHYA, f"base_model.model.{PROJ}"),
    ],
)
def test_the_hosts_spelling_wins_over_one_that_only_this_extension_reads(hosts_name, our_name, host_first):
    theirs, ours = pair(hosts_name), pair(our_name, seed=7)
    changed, expected, text = fitted(theirs | ours if host_first else ours | theirs)
    assert expected
    assert_same(changed, expected)
    assert f"1 of its updates have no effect ({our_name}.lora_up.weight): it holds two of one layer" in text


def test_the_hosts_slice_wins_over_a_whole_weight_that_only_this_extension_reads():
    whole = f"transformer.{QKV}"
    changed, expected, text = fitted(pair("transformer.transformer_blocks.0.attn.to_q") | pair(whole, rows=384, seed=7))
    assert_same(changed, expected)
    assert f"1 of its updates have no effect ({whole}.lora_up.weight)" in text


def test_a_second_bias_is_named():
    theirs, ours = f"diffusion_model.{PROJ}", f"model.diffusion_model.{PROJ}"
    changed, expected, text = fitted({f"{theirs}.diff_b": random(128), f"{ours}.diff_b": random(128, seed=2)})
    assert_same(changed, expected)
    assert f"1 of its updates have no effect ({ours}.diff_b)" in text


def test_a_weight_that_the_host_reads_nothing_for_takes_the_spelling_of_this_extension():
    """A stray alpha in the host's spelling is no update."""
    model = comfy_models.load("sd3")
    tensors = pair(f"transformer.{PROJ}")
    stray = {f"diffusion_model.{PROJ}.alpha": random(1)[0]}
    alone, both = (changes(model.model, fit(model, some)[0]) for some in (tensors, stray | tensors))
    assert set(alone) == {f"diffusion_model.{PROJ}.weight"}
    assert_same(both, alone)


def test_the_magnitude_of_the_spelling_that_counts_is_read():
    """A DoRA of PEFT in a spelling that has no effect leaves its magnitude to nobody."""
    ours = f"transformer.{PROJ}"
    magnitude = {f"{ours}.lora_magnitude_vector": random(128).abs()}
    changed, expected, text = fitted(pair(f"diffusion_model.{PROJ}") | pair(ours, seed=7) | magnitude)
    assert_same(changed, expected)
    assert "1 of its updates have no effect" in text
