"""Files that change a weight and a slice of it: the host applies the updates one after the other, and so does the blend."""

import comfy.lora
import comfy_adapters
import comfy_models
import pytest
from adapter_makers import random
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference
from dense_updates import assert_same, changes, fit, host_changes
from diffusion_blend.blending.updates import Difference, LowRank, ScaledOutput, Slice
from diffusion_blend.nodes.adapters.overlaps import overlapping

QKV = "joint_blocks.0.x_block.attn.qkv"
WHOLE = f"diffusion_model.{QKV}"
PART = "transformer.transformer_blocks.0.attn."


def pair(name, rows, seed=1, rank=4):
    """A LoRA that reads 128 inputs."""
    down = random(rank, 128, seed=seed) / 128**0.5
    return {f"{name}.lora_up.weight": random(rows, rank, seed=seed + 1) / 5, f"{name}.lora_down.weight": down}


def magnitudes(first, count):
    """Norms of some rows of the fused weight, half as large again."""
    weight = comfy_models.state_dict("sd3")[f"{QKV}.weight"]
    return 1.5 * weight[first : first + count].norm(dim=1, keepdim=True)


LORA = pair(WHOLE, 384)
SET = {f"{PART}to_k.set_weight": random(128, 128) / 10}
OFT = {f"{PART}to_k.oft_blocks": random(8, 16, 16) / 20}
DORA = pair(f"{PART}to_q", 128, seed=3) | {f"{PART}to_q.dora_scale": magnitudes(0, 128)}
OVERLAPS = {
    "a LoRA of the whole and a replaced slice": LORA | SET,
    "a LoRA of the whole and an OFT of a slice": LORA | OFT,
    "a difference of the whole and an OFT of a slice": {f"{WHOLE}.diff": random(384, 128) / 10} | OFT,
    "a LoRA of the whole, a replaced slice and a DoRA of another": LORA | SET | DORA,
    "a DoRA of the whole and a LoRA of a slice": LORA
    | {f"{WHOLE}.dora_scale": magnitudes(0, 384)}
    | pair(f"{PART}to_v", 128, seed=5),
}


def test_strength_0_changes_nothing():
    """As Load LoRA. ComfyUI's own patching would put a weight that replaces the model's in place at any strength."""
    for tensors in OVERLAPS.values():
        updates, report = fit(comfy_models.load("sd3"), tensors, 0.0)
        assert not any(bool(change.any()) for change in changes(comfy_models.load("sd3").model, updates).values())
        assert report.applied == len(overlapped(tensors))


def fitted(tensors, strength):
    model = comfy_models.load("sd3")
    updates, report = fit(model, tensors, strength)
    hosts = host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, strength)
    return changes(model.model, updates), hosts, report, updates


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", OVERLAPS)
def test_updates_that_share_numbers_are_applied_one_after_the_other(name, strength):
    ours, hosts, report, _ = fitted(OVERLAPS[name], strength)
    assert set(hosts) == {f"{WHOLE}.weight"}
    assert_same(ours, hosts)
    assert report.applied == len(overlapped(OVERLAPS[name])) and not report.skipped()


def overlapped(tensors):
    names = comfy.lora.model_lora_keys_unet(comfy_models.load("sd3").model, {})
    return comfy.lora.load_lora(dict(tensors), names, log_missing=False)


def test_an_image_is_that_of_the_hosts_patched_copy(sd3, loras_folder):
    tensors = OVERLAPS["a LoRA of the whole, a replaced slice and a DoRA of another"]
    write(loras_folder, "overlap", tensors)
    expected = sd3.sample(comfy_adapters.Patched("sd3").model(tensors))
    for method in ("blend", "soup"):
        blended = blend_model(sd3.model, load_loras(["overlap.safetensors"]), preference(1.0), method)
        assert difference(sd3.sample(blended), expected) < 1e-5


def test_slices_beside_each_other_keep_their_small_forms():
    """Three separate projections of one fused weight are the usual case. None of them needs the whole weight's memory."""
    both = DORA | OFT | pair(f"{PART}to_v", 128, seed=5)
    ours, hosts, _, updates = fitted(both, 1.0)
    assert_same(ours, hosts)
    (some,) = updates.values()
    assert not any(isinstance(update, Difference) for update in some)
    assert {type(update) for update in some} == {LowRank, Slice}
    assert any(isinstance(update, Slice) and isinstance(update.inner, ScaledOutput) for update in some)


def test_updates_that_only_add_keep_their_small_forms():
    ours, hosts, _, updates = fitted(LORA | pair(f"{PART}to_q", 128, seed=3), 1.0)
    assert_same(ours, hosts)
    assert all(isinstance(update, LowRank) for update in updates[WHOLE])


def test_one_of_them_that_does_not_fit_is_skipped_by_name():
    wrong = {f"{PART}to_k.oft_blocks": random(8, 15, 15) / 20}
    ours, hosts, report, _ = fitted(LORA | wrong, 1.0)
    assert_same(ours, hosts)
    assert "1 of 2 layers applied. Skipped: 1 of another shape" in report.text()


def test_a_magnitude_that_only_this_extension_reads_is_said_where_another_update_has_the_same_numbers():
    """The host, whose order of updates counts here, does not read it."""
    key = f"{PART}to_k.lora_magnitude_vector"
    tensors = LORA | pair(f"{PART}to_k", 128, seed=3) | {key: magnitudes(128, 128).flatten()}
    ours, hosts, report, _ = fitted(tensors, 1.0)
    assert_same(ours, hosts)
    assert f"1 of its tensors have no effect ({key})" in report.text()


def test_targets_are_grouped_by_the_numbers_that_they_share():
    first, middle, last = (("a", (0, start, 4)) for start in (0, 4, 8))
    assert overlapping([first, "b", middle, last]) == [[first], [middle], [last], ["b"]]
    wide = ("a", (0, 3, 2))
    assert overlapping([first, middle, wide, last]) == [[first, middle, wide], [last]]
    assert overlapping([last, first, "a"]) == [[last, first, "a"]]
    across = ("a", (1, 100, 2))
    assert overlapping([first, last, across]) == [[first, last, across]]
