"""Uses that would ignore the blend are refused, and the plain MODEL is as before."""

import importlib

import comfy.sd
import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.regional import RegionalPreferenceNode


@pytest.fixture
def merging():
    return importlib.import_module("comfy_extras.nodes_model_merging")


@pytest.fixture
def blended(sd15):
    return blend_model(sd15.model, sd15.loras(2), preference(1, 1))


@pytest.mark.parametrize("name", ["ModelMergeSimple", "ModelSubtract", "ModelAdd"])
def test_a_blend_cannot_be_merged_into_another_model(sd15, blended, merging, name):
    amounts = {"ModelMergeSimple": (0.5,), "ModelSubtract": (1.0,), "ModelAdd": ()}[name]
    for model in (blended, blended.clone(), blended.clone().clone()):
        with pytest.raises(ValueError, match="a merge would ignore it.*put Blend Model last"):
            getattr(merging, name)().merge(sd15.model, model, *amounts)
    getattr(merging, name)().merge(sd15.model, sd15.model.clone(), *amounts)


def test_a_merge_after_the_blend_is_refused_and_one_before_it_is_the_base(sd15, blended, merging):
    other = sd15.patched.model(sd15.adapters[2])
    (merged,) = merging.ModelMergeSimple().merge(blended, other, 0.5)
    with pytest.raises(ValueError, match="A node after Blend Model merges or multiplies"):
        sd15.sample(merged, steps=1)
    (base,) = merging.ModelMergeSimple().merge(sd15.model, other, 0.5)
    sd15.sample(blend_model(base, sd15.loras(2), preference(1, 1)), steps=1)
    assert hooks_on(sd15.model) == 0


def test_a_saved_blend_is_refused(blended, tmp_path):
    from comfy.model_patcher import ModelPatcher

    if not hasattr(ModelPatcher, "state_dict_for_saving"):
        pytest.skip("this host saves the weights without asking the patcher")
    with pytest.raises(ValueError, match="a saved file would ignore it"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), blended.clone())
    assert not list(tmp_path.iterdir())


def test_a_difference_of_a_blend_and_its_extraction_are_refused(sd15, blended, merging):
    extract = importlib.import_module("comfy_extras.nodes_lora_extract")
    for model in (blended, blended.clone()):
        with pytest.raises(ValueError, match=r"the difference .* would ignore it.*Bake Blend"):
            merging.ModelSubtract().merge(model, sd15.model, 1.0)
        with pytest.raises(ValueError, match=r"Extract and Save LoRA would ignore it.*Bake Blend"):
            extract.calc_lora_model(model, 2, "diffusion_model.", "diffusion_model.", {}, extract.LORAType.STANDARD)
    (added,) = merging.ModelAdd().merge(blended, sd15.patched.model(sd15.adapters[2]))  # the base may be a sum
    assert added.patches
    (difference_of_plain,) = merging.ModelSubtract().merge(sd15.patched.model(sd15.adapters[2]), sd15.model, 1.0)
    found = extract.calc_lora_model(
        difference_of_plain, 2, "diffusion_model.", "diffusion_model.", {}, extract.LORAType.STANDARD
    )
    assert found


def test_an_attention_multiply_after_the_blend_is_refused(sd15, blended):
    multiply = importlib.import_module("comfy_extras.nodes_attention_multiply")
    after = multiply.attention_multiply("attn1", blended, 1.5, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="A node after Blend Model merges or multiplies"):
        sd15.sample(after, steps=1)
    before = multiply.attention_multiply("attn1", sd15.model, 1.5, 1.0, 1.0, 1.0)
    sampled = sd15.sample(blend_model(before, sd15.loras(2), preference(1, 1)), steps=1)
    assert difference(sampled, sd15.sample(blended, steps=1)) > 1e-4


def test_a_lora_after_the_blend_belongs_to_the_base(sd15, blended):
    after, _ = comfy.sd.load_lora_for_models(blended, None, dict(sd15.adapters[2]), 1.0, 0)
    before = blend_model(sd15.patched.model(sd15.adapters[2]), sd15.loras(2), preference(1, 1))
    assert difference(sd15.sample(after, steps=1), sd15.sample(before, steps=1)) < 1e-4


def test_a_regional_preference_names_the_node_that_calls_with_tiles(sd3):
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    wanted = RegionalPreferenceNode.execute(preference(1, 0), preference(0, 1), mask=mask, feather=0).args[0]
    model = blend_model(sd3.model, sd3.loras(2), wanted)

    class TiledDiffusion:
        def __call__(self, apply_model, call):
            halves = [apply_model(x, call["timestep"], **call["c"]) for x in call["input"].chunk(2, -1)]
            return torch.cat(halves, -1)

    model.set_model_unet_function_wrapper(TiledDiffusion())
    with pytest.raises(
        ValueError, match=r"cannot be combined with tiles: .*TiledDiffusion calls the model with \[8, 4\]"
    ):
        sd3.sample(model, latent=comfy_models.latent("sd3", 1))


def test_a_sampler_that_holds_the_frames_before_is_refused(sd3):
    """As the host's ar_video: its caches of keys and values would take turns between the rows."""
    blended = blend_model(sd3.model, sd3.loras(2), preference(1, 1))
    blended.model_options["transformer_options"]["ar_state"] = {"start_frame": 0}
    with pytest.raises(ValueError, match="ar_video holds the keys and values of the frames before"):
        sd3.sample(blended, steps=1)
    soup = blend_model(sd3.model, sd3.loras(2), preference(1, 1), "soup")
    soup.model_options["transformer_options"]["ar_state"] = {"start_frame": 0}
    sd3.sample(soup, steps=1)


def test_a_second_model_for_the_negative_has_the_same_blend_or_is_refused(sd3):
    """The Dual Model CFG Guider calls the negative's MODEL with the options of the positive's."""
    import comfy.samplers
    import comfy_extras.nodes_custom_sampler as host

    if not hasattr(host, "DualModelGuider"):
        pytest.skip("this host has no Dual Model CFG Guider")
    blended = blend_model(sd3.model, sd3.loras(2), preference(0.3, 0.7))
    other = blend_model(sd3.model, sd3.loras(2), preference(0.7, 0.3))

    def run(model, negative):
        guider = host.DualModelGuider.execute(model, sd3.positive, 4.0, negative, sd3.negative).args[0]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
        noise, sampler = host.RandomNoise.execute(5).args[0], comfy.samplers.sampler_object("euler")
        latent = comfy_models.latent("sd3", 2)
        return host.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]

    for pair in ((blended, sd3.model), (sd3.model, blended), (blended, other)):
        with pytest.raises(ValueError, match="the negative with another MODEL"):
            run(*pair)
    assert difference(run(blended, blended), sd3.sample(blended, steps=2)) < 1e-5
    assert torch.equal(run(sd3.model, sd3.model), run(sd3.model, sd3.model))
