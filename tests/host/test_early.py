"""Blending in the first steps and souping after, against copies of the checkpoint that the host itself patched."""

import comfy_models
import pytest
import torch
from comfy_adapters import predict
from comfy_world import blend_model, difference, preference, weights_of


def scaled(tensors, weight):
    """The adapter with its whole update multiplied."""
    return {key: tensor * weight if "lora_up" in key else tensor for key, tensor in tensors.items()}


def reference(world, count, levels):
    """A MODEL that sums the copies where the noise is at one of the levels or above all others, else runs the soup's copy."""
    weights = weights_of(count)
    copies = [world.patched.model(tensors) for tensors in world.adapters[:count]]
    soup = world.patched.model(*(scaled(*pair) for pair in zip(world.adapters, weights, strict=False)))
    for model in (*copies, soup):
        assert model.model is not world.model.model

    def early_or_soup(_, call):
        if float(call["timestep"].flatten()[0]) < levels[-1] * 0.999:
            return predict(soup, call)
        return sum(weight * predict(copy, call) for weight, copy in zip(weights, copies, strict=True))

    model = world.model.clone()
    model.set_model_unet_function_wrapper(early_or_soup)
    return model


def schedule(world, steps):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(world.model.get_model_object("model_sampling"), "normal", steps).tolist()


@pytest.mark.parametrize("kind_and_sampler", [("sd3", "euler"), ("sd3", "dpmpp_2m"), ("sd15", "euler")], ids=" ".join)
def test_it_is_the_copies_sum_and_then_the_soups_copy(worlds, kind_and_sampler):
    kind, sampler_name = kind_and_sampler
    world, run = worlds(kind), {"steps": 3, "sampler_name": sampler_name}
    blended = blend_model(world.model, world.loras(2), preference(*weights_of(2)), "early", early_share=0.3)
    expected = world.sample(reference(world, 2, schedule(world, 3)[:1]), **run)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    blend = blend_model(world.model, world.loras(2), preference(*weights_of(2)))
    assert difference(world.sample(blend, **run), expected) > 1e-3  # the soup after it matters


@pytest.mark.parametrize(("share", "method"), [(0.0, "soup"), (1.0, "blend")])
def test_its_ends_are_soup_and_blend_bit_for_bit(sd3, share, method):
    wanted = preference(0.2, 0.5, 0.3, kl_scale=1.4)
    early = blend_model(sd3.model, sd3.loras(3), wanted, "early", early_share=share)
    assert torch.equal(sd3.sample(early), sd3.sample(blend_model(sd3.model, sd3.loras(3), wanted, method)))


@pytest.mark.parametrize(("sampler_name", "calls"), [("euler", 3 + 3 + 1 + 1), ("heun", (3 + 3) * 2 + 2 + 1)])
def test_both_evaluations_of_a_step_are_blended_alike(sd3, sampler_name, calls):
    counted = []
    model = blend_model(sd3.model, sd3.loras(3), preference(1, 1, 1), "early", early_share=0.5)
    handle = sd3.model.model.diffusion_model.register_forward_hook(lambda *_: counted.append(1))
    try:
        sd3.sample(model, steps=4, sampler_name=sampler_name, latent=comfy_models.latent("sd3", 1))
    finally:
        handle.remove()
    assert len(counted) == calls


def test_a_region_is_refused_with_the_reason(sd3):
    from diffusion_blend.nodes.regional import RegionalPreferenceNode

    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    regional = RegionalPreferenceNode.execute(preference(1, 0), preference(0, 1), mask, 0).args[0]
    with pytest.raises(ValueError, match="After the first steps a soup averages the weights of the whole network"):
        blend_model(sd3.model, sd3.loras(2), regional, "early")
