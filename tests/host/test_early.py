"""Early steps blended and later steps with the corrected soup, against copies of the checkpoint that the host patched."""

import comfy_models
import pytest
import torch
from comfy_adapters import predict
from comfy_world import blend_model, difference, preference, weights_of


def scaled(tensors, weight):
    """Return the adapter with its whole update multiplied."""
    return {key: tensor * weight if "lora_up" in key else tensor for key, tensor in tensors.items()}


def reference(world, count, levels):
    """Return a MODEL that sums the copies at the given noise levels. Elsewhere it runs the soup's copy and adds the residual.

    The residual is that of the last blended step, plus half of its difference to the decayed residual of an earlier step. That
    is the last earlier blended step that is followed by a step without blend.
    """
    weights = weights_of(count)
    copies = [world.patched.model(tensors) for tensors in world.adapters[:count]]
    soup = world.patched.model(*(scaled(*pair) for pair in zip(world.adapters, weights, strict=False)))
    for model in (*copies, soup):
        assert model.model is not world.model.model
    gaps, fresh, orders = [], {}, set()

    def early_or_soup(_, call):
        sigma, souped = float(call["timestep"].flatten()[0]), predict(soup, call)
        orders.add(tuple(call["cond_or_uncond"]))
        assert len(orders) == 1
        if any(abs(sigma / level - 1) < 1e-3 for level in levels):
            blended = sum(weight * predict(copy, call) for weight, copy in zip(weights, copies, strict=True))
            fresh.update(gap=blended - souped, sigma=sigma)
            return blended
        if fresh:
            gaps.append(dict(fresh))
            fresh.clear()
        gap, kept_at = gaps[-1]["gap"], gaps[-1]["sigma"]
        if len(gaps) > 1:
            expected = (kept_at / gaps[-2]["sigma"]) ** 2.5 * gaps[-2]["gap"]
            gap = gap + (gap - expected) / 2
        return souped + (sigma / kept_at) ** 2.5 * gap

    model = world.model.clone()
    model.set_model_unet_function_wrapper(early_or_soup)
    return model


def schedule(world, steps):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(world.model.get_model_object("model_sampling"), "normal", steps).tolist()


CASES = [("sd3", "euler", 3, 0.3, (0,)), ("sd3", "dpmpp_2m", 8, 0.5, (0, 1, 3)), ("sd15", "euler", 3, 0.3, (0,))]


@pytest.mark.parametrize(("kind", "sampler_name", "steps", "share", "early"), CASES)
def test_it_is_the_copies_sum_and_then_the_soups_copy_moved(worlds, kind, sampler_name, steps, share, early):
    world, run = worlds(kind), {"steps": steps, "sampler_name": sampler_name}
    blended = blend_model(world.model, world.loras(2), preference(*weights_of(2)), "early", early_share=share)
    levels = schedule(world, steps)
    expected = world.sample(reference(world, 2, [levels[index] for index in early]), **run)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    blend = blend_model(world.model, world.loras(2), preference(*weights_of(2)))
    assert difference(world.sample(blend, **run), expected) > 1e-4  # the steps after it change the image


def test_a_second_run_starts_with_nothing_kept(sd3):
    model = blend_model(sd3.model, sd3.loras(3), preference(1, 1, 1), "early", early_share=0.3)
    first = sd3.sample(model, steps=4)
    sd3.sample(model, steps=4, seed=7)
    assert torch.equal(sd3.sample(model, steps=4), first)


@pytest.mark.parametrize(("share", "method"), [(0.0, "soup"), (1.0, "blend")])
def test_its_ends_are_soup_and_blend_bit_for_bit(sd3, share, method):
    wanted = preference(0.2, 0.5, 0.3, kl_scale=1.4)
    early = blend_model(sd3.model, sd3.loras(3), wanted, "early", early_share=share)
    assert torch.equal(sd3.sample(early), sd3.sample(blend_model(sd3.model, sd3.loras(3), wanted, method)))


@pytest.mark.parametrize(("sampler_name", "calls"), [("euler", 3 + 4 + 1 + 1), ("heun", (3 + 4) * 2 + 2 + 1)])
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
    regional = RegionalPreferenceNode.execute(preference(1, 0), preference(0, 1), mask=mask, feather=0).args[0]
    with pytest.raises(ValueError, match="After the first steps a soup averages the weights of the whole network"):
        blend_model(sd3.model, sd3.loras(2), regional, "early")
