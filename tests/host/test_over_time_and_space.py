"""Preferences over time and space equal a reference that blends by hand: copies that the host patched, summed step by step
and pixel by pixel in the host's own unet wrapper slot."""

import math

import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import hooks_on, predict
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.regional import RegionalPreferenceNode
from diffusion_blend.nodes.samplers import BlendedKSampler, KLScaleSampler, MSDDASampler, StochasticAdapterSampler
from diffusion_blend.nodes.schedule import PreferenceScheduleNode

STEPS = 4
# The step of each evaluation in a run of four steps.
EVALUATIONS = {"euler": [0, 1, 2, 3], "heun": [0, 0, 1, 1, 2, 2, 3], "dpmpp_2m": [0, 1, 2, 3]}


def schedule(start, end, curve="linear", start_percent=0.0, end_percent=1.0):
    return PreferenceScheduleNode.execute(
        start, end, curve=curve, start_percent=start_percent, end_percent=end_percent
    ).args[0]


def regional(outside, inside, mask, feather=0):
    return RegionalPreferenceNode.execute(outside, inside, mask=mask, feather=feather).args[0]


def by_hand(world, coefficients_of_evaluation):
    """Return a MODEL whose n-th evaluation is ``D_0 + sum_i c_i (D_i - D_0)``; c_i is a number or float[B, 1, H, W]."""
    adapters = len(coefficients_of_evaluation(0))
    base = world.patched.model()
    copies = [world.patched.model(tensors) for tensors in world.adapters[:adapters]]
    done = [0]

    def summed(_, call):
        c = coefficients_of_evaluation(done[0])
        done[0] += 1
        total = plain = predict(base, call)
        images = call["input"].shape[0] // 2  # conditional and unconditional in one call
        for copy, factor in zip(copies, c, strict=True):
            if isinstance(factor, torch.Tensor):
                factor = factor.expand(images, -1, -1, -1).repeat(2, 1, 1, 1)
            total = total + factor * (predict(copy, call) - plain)
        return total

    wrapped = base.clone()
    wrapped.set_model_unet_function_wrapper(summed)
    return wrapped


def half_mask(height=64, width=64):
    """Make a mask of the left half with a grey column of latent pixels at its edge."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    mask[..., width // 2 : width // 2 + width // 8] = 0.3
    return mask


@pytest.mark.parametrize(("kind", "sampler_name"), [("sd15", "euler"), *(("sd3", name) for name in EVALUATIONS)])
def test_a_schedule_is_the_blend_by_hand(worlds, kind, sampler_name):
    world = worlds(kind)
    run = {"steps": STEPS, "sampler_name": sampler_name, "latent": comfy_models.latent(kind, 1)}
    wanted = schedule(preference(0.8, 0.2), preference(0.1, 0.9, kl_scale=2.0), "cosine")

    def coefficients(evaluation):
        share = (1 - math.cos(math.pi * EVALUATIONS[sampler_name][evaluation] / (STEPS - 1))) / 2
        return [(1 - share) * a + share * b for a, b in ((0.8, 0.2), (0.2, 1.8))]

    expected = world.sample(by_hand(world, coefficients), **run)
    assert difference(world.sample(blend_model(world.model, world.loras(2), wanted), **run), expected) < 1e-4
    fixed = blend_model(world.model, world.loras(2), preference(0.8, 0.2))
    assert difference(world.sample(fixed, **run), expected) > 2e-3  # the schedule has an effect
    assert hooks_on(world.model) == 0


def test_a_scheduled_soup_is_the_hosts_stack_at_every_step(sd3):
    wanted = schedule(preference(1.0, 0.0), preference(0.0, 1.0))
    blended = blend_model(sd3.model, sd3.loras(2), wanted, "soup")
    stacks = []
    for step in range(3):
        model = sd3.model
        for file, strength in zip(sd3.files[:2], (1 - step / 2, step / 2), strict=True):
            if strength:
                (model,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, strength)
        stacks.append(model)
    samples = sd3.sample(blended, steps=3)

    # Three one-step runs of the host, each with its own stack, pass the noisy latent on.
    latent = comfy_models.latent("sd3", 2)
    common = (3, 4.0, "euler", "normal", sd3.positive, sd3.negative)
    for step, model in enumerate(stacks):
        (latent,) = host_nodes.KSamplerAdvanced().sample(
            model, "enable" if step == 0 else "disable", 5, *common, latent, step, step + 1, "enable"
        )
    assert difference(samples, latent["samples"]) < 1e-4


@pytest.mark.parametrize("method", ["blend", "soup"])
@pytest.mark.parametrize("curve", ["linear", "cosine", "step"])
def test_a_constant_schedule_is_the_plain_blend_bit_for_bit(sd3, curve, method):
    wanted = preference(0.3, 0.7, kl_scale=1.3)
    plain, moving = (
        sd3.sample(blend_model(sd3.model, sd3.loras(2), w, method)) for w in (wanted, schedule(wanted, wanted, curve))
    )
    assert torch.equal(plain, moving)


def test_start_and_end_percent_hold_the_ends(sd3):
    run = {"steps": 5}
    wanted = schedule(preference(1.0, 0.0), preference(0.0, 1.0), "linear", 0.25, 0.75)
    shares = [0, 0, 0.5, 1, 1]
    expected = sd3.sample(by_hand(sd3, lambda n: [1 - shares[n], shares[n]]), **run)
    assert difference(sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted), **run), expected) < 1e-4


@pytest.mark.parametrize(
    ("kind", "evaluation", "batch"),
    [("sd15", "sequential", 2), ("sd3", "sequential", 1), ("sd3", "batched", 3), ("sd3", "batched", 1)],
)
def test_a_region_is_the_blend_by_hand(worlds, kind, evaluation, batch):
    world = worlds(kind)
    run = {"latent": comfy_models.latent(kind, batch)}
    wanted = regional(preference(0.8, 0.2), preference(0.1, 0.9, kl_scale=1.5), half_mask())
    m = torch.zeros(1, 1, 8, 8)
    m[..., :4], m[..., 4] = 1, 0.3
    c = [(1 - m) * a + m * b for a, b in ((0.8, 0.15), (0.2, 1.35))]
    expected = world.sample(by_hand(world, lambda _: c), **run)
    blended = blend_model(world.model, world.loras(2), wanted, evaluation=evaluation)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    fixed = blend_model(world.model, world.loras(2), preference(0.8, 0.2))
    assert difference(world.sample(fixed, **run), expected) > 2e-3
    assert hooks_on(world.model) == 0


def test_every_image_has_its_own_mask_also_alone(sd3):
    masks = torch.cat([half_mask(), 1 - half_mask()])
    wanted = regional(preference(1.0, 0.0), preference(0.0, 1.0), masks)

    def run(latent):
        return BlendedKSampler.execute(sd3.model, sd3.loras(2), wanted, **sd3.node_sampling(latent=latent)).args[0]

    together = run(comfy_models.latent("sd3", 3))["samples"]
    for image in range(3):
        alone = run(comfy_models.latent("sd3", 1) | {"batch_index": [image]})["samples"]
        assert difference(alone, together[image : image + 1]) < 1e-4
    m = torch.zeros(3, 1, 8, 8)
    for image, mask in enumerate((masks[0], masks[1], masks[0])):
        m[image, 0] = mask.view(8, 8, 8, 8).mean((1, 3))
    expected = sd3.sample(by_hand(sd3, lambda _: [1 - m, m]), latent=comfy_models.latent("sd3", 3))
    assert difference(together, expected) < 1e-4


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_zeros_or_ones_is_one_preference_alone(sd3, value):
    outside, inside = preference(0.3, 0.7), preference(0.9, 0.1, kl_scale=0.5)
    whole = regional(outside, inside, torch.full((1, 100, 60), value), 16)
    alone = (outside, inside)[int(value)]
    samples, expected = (sd3.sample(blend_model(sd3.model, sd3.loras(2), w)) for w in (whole, alone))
    assert difference(samples, expected) < 1e-5


def test_chained_regions_and_a_schedule_inside_one(sd3):
    corner = torch.zeros(1, 64, 64)
    corner[:, 48:, 48:] = 1
    moving = schedule(preference(1.0, 0.0), preference(0.0, 1.0))
    wanted = regional(regional(preference(0.5, 0.5), moving, half_mask()), preference(0.0, 1.0, kl_scale=2.0), corner)
    m, k = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    m[..., :4], m[..., 4], k[..., 6:, 6:] = 1, 0.3, 1

    def coefficients(step):
        share = step / 2
        first = (1 - k) * ((1 - m) * 0.5 + m * (1 - share))
        second = (1 - k) * ((1 - m) * 0.5 + m * share) + k * 2.0
        return [first, second]

    expected = sd3.sample(by_hand(sd3, coefficients))
    assert difference(sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted)), expected) < 1e-4


def test_kl_scale_sampler_scales_a_schedule(sd3):
    wanted = schedule(preference(1.0, 0.0), preference(0.0, 1.0, kl_scale=3.0))
    result = KLScaleSampler.execute(
        sd3.model, sd3.loras(2), kl_scale=0.5, preference=wanted, **sd3.node_sampling()
    ).args[0]
    expected = sd3.sample(by_hand(sd3, lambda n: [0.5 * (1 - n / 2), 0.5 * n / 2]))
    assert difference(result["samples"], expected) < 1e-4


@pytest.mark.parametrize("draws", ["stratified", "independent"])
def test_stochastic_follows_a_schedule(sd3, draws):
    """The draw is certain at both ends, so the first and the last step are known for every draw in between."""
    wanted = schedule(preference(1.0, 0.0), preference(0.0, 1.0), "step")
    run = sd3.node_sampling(steps=STEPS)
    result = StochasticAdapterSampler.execute(sd3.model, sd3.loras(2), wanted, draws=draws, **run).args[0]
    expected = sd3.sample(by_hand(sd3, lambda n: [(1, 0), (0, 1)][n >= 2]), steps=STEPS)
    assert difference(result["samples"], expected) < 1e-4


def msdda(world, wanted, **changes):
    inputs = world.node_sampling(**changes)
    inputs.pop("sampler_name")
    etas = {f"eta_{i}": 1.0 for i in range(1, 5)}
    return MSDDASampler.execute(world.model, world.loras(2), wanted, **etas, renormalise=False, **inputs).args[0]


def test_msdda_with_equal_etas_is_the_scheduled_blend(sd3):
    wanted = schedule(preference(0.9, 0.1), preference(0.1, 0.9, kl_scale=0.5))
    run = {"sampler_name": "euler_ancestral", "steps": STEPS}
    blended = BlendedKSampler.execute(sd3.model, sd3.loras(2), wanted, **sd3.node_sampling(**run)).args[0]
    assert difference(msdda(sd3, wanted, steps=STEPS)["samples"], blended["samples"]) < 1e-5


def test_where_a_region_cannot_go_is_said_plainly(sd15):
    wanted = regional(preference(1.0, 0.0), preference(0.0, 1.0), half_mask())
    for method in ("soup", "stochastic"):
        with pytest.raises(ValueError, match="another preference in a region. Use the method 'blend'"):
            blend_model(sd15.model, sd15.loras(2), wanted, method)
    with pytest.raises(ValueError, match="MSDDA weighs whole steps"):
        msdda(sd15, wanted)
    (area,) = host_nodes.ConditioningSetArea().append(comfy_models.conditioning("sd15", 4), 32, 64, 0, 0, 0.7)
    with pytest.raises(ValueError, match="cannot be combined with a conditioning that has an area"):
        sd15.sample(blend_model(sd15.model, sd15.loras(2), wanted), positive=sd15.positive + area)
    assert hooks_on(sd15.model) == 0


def test_a_masked_conditioning_goes_with_a_region(sd15):
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:, :40] = 1
    (masked,) = host_nodes.ConditioningSetMask().append(comfy_models.conditioning("sd15", 5), mask, "default", 0.9)
    one = preference(0.3, 0.7)
    whole = regional(preference(1.0, 0.0), one, torch.ones(1, 8, 8))
    samples, expected = (
        sd15.sample(blend_model(sd15.model, sd15.loras(2), w), positive=sd15.positive + masked) for w in (whole, one)
    )
    assert difference(samples, expected) < 1e-5


def test_pictures_and_videos_have_pixels_and_other_latents_are_refused():
    from diffusion_blend.nodes.engine.steps import StepTracker

    video = StepTracker(None, 0, None, (2, 16, 5, 6, 8))
    assert video.step_info({}, torch.ones(4), 2, (4, 16, 5, 6, 8)).pixels == (6, 8)
    assert video.step_info({}, torch.ones(4), 2, (4, 16, 2, 6, 8)).pixels == (6, 8)  # a window of its frames
    tracker = StepTracker(None, 0, None, (1, 64, 512))
    with pytest.raises(ValueError, match="latent of an image or a video.*\\[1, 64, 512\\]"):
        _ = tracker.step_info({}, torch.ones(1), 1, (1, 64, 512)).pixels
