"""Nodes behind Blend Text Encoder that change the text encoder: every adapter's encoding has the host's change.

The truth is the same node behind the host's Load LoRA on MODEL and CLIP.
"""

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.text_encoder import BlendTextEncoder
from small_text_encoder import STRENGTH, adapter, by_the_host, encode, image, sample

HOOK = "text-hook"


@pytest.fixture
def files(small, folder):
    made = [adapter(small, 1), adapter(small, 2, text=False)]
    for number, tensors in enumerate(made):
        write(folder, f"changed-{number}", tensors)
    write(folder, HOOK, adapter(small, 9))
    return made


@pytest.fixture
def blended(small, files):
    """The blended MODEL with all weight on the first adapter, and the reward LoRAs."""
    loras = load_loras(["changed-0.safetensors", "changed-1.safetensors"], [STRENGTH] * 2)
    return blend_model(small[0], loras, preference(1.0, 0.0)), loras


def hooks_of_host(clip, schedule_clip, apply_to_conds):
    from comfy_extras import nodes_hooks

    hooks = nodes_hooks.CreateHookLora().create_hook(f"{HOOK}.safetensors", 1.0, 1.0)[0]
    if schedule_clip:
        frames = nodes_hooks.CreateHookKeyframesInterpolated()
        keyframes = frames.create_hook_keyframes(0.0, 1.0, "linear", 0.0, 1.0, 3, False)[0]
        hooks = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, keyframes)[0]
    return nodes_hooks.SetClipHooks().apply_hooks(clip, schedule_clip, apply_to_conds, hooks)[0]


def bypass_lora(clip, tensors):
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this host has no bypass LoRA")
    return comfy.sd.load_bypass_lora_for_models(None, clip, dict(tensors), 1.0, 1.0)[1]


def merged(clip, tensors):
    """A merge of two text encoders: it multiplies what is below it, also the adapters."""
    from comfy_extras.nodes_model_merging import CLIPMergeSimple

    other = comfy.sd.load_lora_for_models(None, clip, dict(tensors), 0.0, 1.0)[1]
    return lambda clip: CLIPMergeSimple().merge(clip, other, 0.5)[0]


@pytest.mark.parametrize("apply_to_conds", [True, False])
@pytest.mark.parametrize("schedule_clip", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_on_the_text_encoder_are_the_hosts(small, files, blended, schedule_clip, apply_to_conds, before):
    model, loras = blended
    patched, patched_clip = by_the_host(small, files[0])

    def hooked(clip):
        return hooks_of_host(clip, schedule_clip, apply_to_conds)

    if before:
        expected = image(*by_the_host((small[0], hooked(small[1])), files[0]))
        found = image(model, BlendTextEncoder.execute(hooked(small[1]), loras).args[0])
    else:
        expected = image(patched, hooked(patched_clip))
        found = image(model, hooked(BlendTextEncoder.execute(small[1], loras).args[0]))
    assert difference(found, expected) < 1e-5
    assert difference(image(patched, patched_clip), expected) > 1e-3  # the hook changes the image


@pytest.mark.parametrize("before", [False, True])
def test_a_bypass_lora_on_the_text_encoder_is_the_hosts(small, files, blended, before):
    model, loras = blended
    other = adapter(small, 9)
    patched, patched_clip = by_the_host(small, files[0])
    expected = image(patched, bypass_lora(patched_clip, other))
    if before:
        found = image(model, BlendTextEncoder.execute(bypass_lora(small[1], other), loras).args[0])
    else:
        found = image(model, bypass_lora(BlendTextEncoder.execute(small[1], loras).args[0], other))
    assert difference(found, expected) < 1e-5
    assert difference(image(patched, patched_clip), expected) > 1e-3


def test_a_merge_into_the_text_encoder_multiplies_the_adapters_as_the_hosts(small, files, blended):
    model, loras = blended
    merge = merged(small[1], adapter(small, 9))
    patched, patched_clip = by_the_host(small, files[0])
    found = image(model, merge(BlendTextEncoder.execute(small[1], loras).args[0]))
    assert difference(found, image(patched, merge(patched_clip))) < 1e-5
    before = by_the_host((small[0], merge(small[1])), files[0])
    found = image(model, BlendTextEncoder.execute(merge(small[1]), loras).args[0])
    assert difference(found, image(*before)) < 1e-5


def test_patches_on_the_clips_patcher_reach_every_adapter(small, files, blended):
    """Some packs change ``clip.patcher``, and not the CLIP."""
    model, loras = blended
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    change = torch.full_like(small[1].cond_stage_model.state_dict()[key], 0.1)

    def changed(clip):
        clip = clip.clone()
        clip.patcher.add_patches({key: (change,)}, 1.0)
        return clip

    patched, patched_clip = by_the_host(small, files[0])
    found = image(model, changed(BlendTextEncoder.execute(small[1], loras).args[0]))
    assert difference(found, image(patched, changed(patched_clip))) < 1e-5


def test_a_plain_model_takes_the_hooked_base(small, files, blended):
    texts = hooks_of_host(BlendTextEncoder.execute(small[1], blended[1]).args[0], False, False)
    expected = image(small[0], hooks_of_host(small[1], False, False))
    assert difference(sample(small[0], encode(texts, "a red circle"), encode(texts, "blue")), expected) < 1e-6


def test_a_blended_clip_is_not_merged_saved_or_extracted(small, blended, tmp_path, monkeypatch):
    from comfy_extras import nodes_lora_extract as extract
    from comfy_extras import nodes_model_merging as merging

    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path))
    model, clip = small
    for texts in (
        BlendTextEncoder.execute(clip, blended[1]).args[0],
        BlendTextEncoder.execute(clip, blended[1]).args[0].clone(),
    ):
        for merge in (merging.CLIPMergeSimple().merge, merging.CLIPSubtract().merge):
            with pytest.raises(ValueError, match="a merge would ignore them.*before Blend Text Encoder.*Bake Blend"):
                merge(clip, texts, 0.5)
        with pytest.raises(ValueError, match="a merge would ignore them"):
            merging.CLIPAdd().merge(clip, texts)
        with pytest.raises(ValueError, match="the difference to another one"):
            merging.CLIPSubtract().merge(texts, clip, 1.0)
        with pytest.raises(ValueError, match="a saved file would ignore them"):
            merging.CLIPSave().save(texts, "clip/x")
        with pytest.raises(ValueError, match="a saved file would ignore them"):
            comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model, texts)
        with pytest.raises(ValueError, match="Extract and Save LoRA would ignore them"):
            extract.calc_lora_model(texts.patcher, 2, "", "text_encoders.", {}, extract.LORAType.STANDARD)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    merging.CLIPSave().save(clip, "clip/x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


def test_attention_multiply_of_the_clip_multiplies_the_adapters_as_the_hosts(small, files, blended):
    from comfy_extras.nodes_attention_multiply import CLIPAttentionMultiply

    def multiplied(clip):
        numbers = (1.5, 0.7, 1.2, 1.0)
        if hasattr(CLIPAttentionMultiply, "execute"):
            return CLIPAttentionMultiply.execute(clip, *numbers).args[0]
        return CLIPAttentionMultiply().patch(clip, *numbers)[0]

    patched, patched_clip = by_the_host(small, files[0])
    found = image(blended[0], multiplied(BlendTextEncoder.execute(small[1], blended[1]).args[0]))
    assert difference(found, image(patched, multiplied(patched_clip))) < 1e-5


def test_generated_text_is_said_to_be_the_bases(small, blended, caplog, monkeypatch):
    monkeypatch.setattr(comfy.sd.CLIP, "generate", lambda *_: "a text", raising=False)
    texts = BlendTextEncoder.execute(small[1], blended[1]).args[0]
    with caplog.at_level("INFO", logger="diffusion_blend"):
        assert texts.generate({}) == "a text"
    assert "generated without the adapters" in caplog.text
