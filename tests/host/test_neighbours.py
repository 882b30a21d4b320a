"""The blend with other nodes: each case equals the reference in which the host patches the weights."""

import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.samplers import BlendedKSampler

WEIGHTS = (0.3, 0.7)
KL_SCALE = 1.3
COEFFICIENTS = [KL_SCALE * w for w in WEIGHTS]


@pytest.fixture(params=["sequential", "batched"])
def pair(request, sd15):
    """Make the blend and its reference on the same MODEL with its patches and options."""

    def make(model=None, on_top_of=()):
        model = model or sd15.model
        wanted = preference(*WEIGHTS, kl_scale=KL_SCALE)
        blended = blend_model(model, sd15.loras(2), wanted, evaluation=request.param)
        like = None if on_top_of else model
        return blended, sd15.patched.blended(sd15.adapters[:2], COEFFICIENTS, on_top_of, like)

    return make


def check(world, pair, **run):
    blended, reference = pair
    expected = world.sample(reference, **run)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    return expected


def random_latent(batch=2, seed=3):
    latent = comfy_models.latent("sd15", batch)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))
    return latent


@pytest.fixture(scope="module")
def controlnet():
    """Load a random ControlNet for the shallow SD 1.5 with the host's loader."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {key: value for key, value in comfy_models.SD15.items() if key not in ("out_channels", "legacy")}
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    comfy_models.fill(tensors, 9)
    control = comfy.controlnet.load_controlnet_state_dict(tensors)
    assert control is not None
    return control


def test_controlnet(sd15, pair, controlnet):
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        sd15.positive, sd15.negative, controlnet, hint, 0.8, 0.0, 1.0
    )
    expected = check(sd15, pair(), positive=positive, negative=negative)
    assert difference(sd15.sample(pair()[1]), expected) > 1e-2  # the ControlNet has an effect


def test_attention_patches_that_read_cond_or_uncond(sd15, pair):
    """The patch treats each chunk by its kind. It fails if the order or number of chunks differs from the lists."""
    seen = []

    def patch(q, k, v, extra_options):
        kinds = extra_options["cond_or_uncond"]
        assert q.shape[0] % len(kinds) == 0
        assert len(extra_options["uuids"]) == len(kinds)
        seen.append(len(kinds))
        chunks = q.chunk(len(kinds))
        q = torch.cat([chunk * (0.5 if kind == 1 else 2.0) for chunk, kind in zip(chunks, kinds, strict=True)])
        return q, k, v

    model = sd15.model.clone()
    model.set_model_attn2_patch(patch)
    expected = check(sd15, pair(model))
    assert difference(sd15.sample(pair()[1]), expected) > 1e-3
    assert set(seen) <= {2, 6}


def test_rows_have_uuids_of_their_own(sd15):
    """Caches in a network have uuids as keys, so rows of the plan need different uuids, and the same ones at every step."""
    seen = []

    def patch(q, k, v, extra_options):
        if not seen or seen[-1] != extra_options["uuids"]:
            seen.append(list(extra_options["uuids"]))
        return q, k, v

    model = sd15.model.clone()
    model.set_model_attn1_patch(patch)
    sd15.sample(blend_model(model, sd15.loras(2), preference(*WEIGHTS)), steps=2)
    sequential = seen.copy()
    assert len(sequential) == 4
    assert sequential[:2] == sequential[2:]  # the same at every step
    assert len({uuid for uuids in sequential for uuid in uuids}) == 4  # 2 rows x (cond, uncond)
    seen.clear()

    def watch(_module, _args, kwargs):
        seen.append(list(kwargs["transformer_options"]["uuids"]))

    # A patch would make a batched blend go on row by row, so the network itself is watched.
    handle = sd15.model.model.diffusion_model.register_forward_pre_hook(watch, with_kwargs=True)
    sd15.sample(blend_model(sd15.model, sd15.loras(2), preference(*WEIGHTS), evaluation="batched"), steps=1)
    handle.remove()
    assert len(set(seen[0])) == 4


def test_area_and_mask_conditioning(sd15, pair):
    (left,) = host_nodes.ConditioningSetArea().append(comfy_models.conditioning("sd15", 4), 32, 64, 0, 0, 0.7)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:, :40] = 1
    (masked,) = host_nodes.ConditioningSetMask().append(comfy_models.conditioning("sd15", 5), mask, "default", 0.9)
    expected = check(sd15, pair(), positive=sd15.positive + left + masked)
    assert difference(sd15.sample(pair()[1]), expected) > 1e-2


def test_several_conds_of_unequal_length(sd15, pair):
    positive = comfy_models.conditioning("sd15", 4, length=5) + comfy_models.conditioning("sd15", 5, length=11)
    check(sd15, pair(), positive=positive, negative=comfy_models.conditioning("sd15", 6, length=8))


def test_inpainting_with_a_noise_mask_and_partial_denoising(sd15, pair):
    latent = random_latent()
    latent["noise_mask"] = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    check(sd15, pair(), latent=latent, denoise=0.6, steps=4, sampler_name="euler_ancestral")


def test_our_samplers_pass_mask_and_denoise_on(sd15):
    latent = random_latent() | {"noise_mask": torch.ones(1, 1, 8, 8)}
    latent["noise_mask"][..., :4] = 0
    inputs = sd15.node_sampling(latent=latent, denoise=0.5, steps=4)
    result = BlendedKSampler.execute(sd15.model, sd15.loras(2), preference(*WEIGHTS, kl_scale=KL_SCALE), **inputs).args[
        0
    ]
    reference = sd15.patched.blended(sd15.adapters[:2], COEFFICIENTS)
    assert difference(result["samples"], sd15.sample(reference, latent=latent, denoise=0.5, steps=4)) < 1e-4
    assert torch.equal(result["noise_mask"], latent["noise_mask"])


def test_start_and_end_steps_in_ksampler_advanced(sd15, pair):
    def two_stages(model):
        latent = comfy_models.latent("sd15", 2)
        common = (6, 4.0, "dpmpp_2m", "normal", sd15.positive, sd15.negative)
        (half,) = host_nodes.KSamplerAdvanced().sample(model, "enable", 5, *common, latent, 0, 3, "enable")
        (whole,) = host_nodes.KSamplerAdvanced().sample(model, "disable", 5, *common, half, 3, 10000, "disable")
        return whole["samples"]

    blended, reference = pair()
    assert difference(two_stages(blended), two_stages(reference)) < 1e-4


def guided(world, guider_of, model):
    """Sample with a guider as SamplerCustomAdvanced does."""
    import comfy.sample
    import comfy.samplers

    guider = guider_of(model)
    latent = comfy_models.latent("sd15", 2)["samples"]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    noise = comfy.sample.prepare_noise(latent, 5)
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=5)


def dual_cfg(world):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def make(model):
        guider = Guider_DualCFG(model)
        guider.set_conds(world.positive, comfy_models.conditioning("sd15", 4), world.negative)
        guider.set_cfg(5.0, 3.0)
        return guider

    return make


def perp_neg(world):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def make(model):
        guider = Guider_PerpNeg(model)
        guider.set_conds(world.positive, world.negative, comfy_models.conditioning("sd15", 4))
        guider.set_cfg(5.0, 1.2)
        return guider

    return make


@pytest.mark.parametrize("guider", [dual_cfg, perp_neg])
def test_other_guiders(sd15, pair, guider):
    blended, reference = pair()
    expected = guided(sd15, guider(sd15), reference)
    assert difference(guided(sd15, guider(sd15), blended), expected) < 1e-4


def test_a_lora_already_on_the_model_belongs_to_the_base(sd15, pair):
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd15.model, sd15.files[2], 1.0)
    blended, reference = pair(loaded, on_top_of=[sd15.adapters[2]])
    expected = check(sd15, (blended, reference))
    assert difference(sd15.sample(pair()[1]), expected) > 1e-2
    # The plain model gives its own image again.
    assert torch.equal(sd15.sample(sd15.model), sd15.sample(comfy_models.load.__wrapped__("sd15")))


def test_nodes_after_the_blend_keep_it(sd15):
    """Patches after Blend Model (here the sampling shift of another node) work on the blend."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    def rescale(model):
        node = RescaleCFG()
        return (node.patch(model, 0.7) if hasattr(node, "patch") else RescaleCFG.execute(model, 0.7))[0]

    blended = blend_model(sd15.model, sd15.loras(2), preference(*WEIGHTS, kl_scale=KL_SCALE))
    reference = sd15.patched.blended(sd15.adapters[:2], COEFFICIENTS)
    expected = check(sd15, (rescale(blended), rescale(reference)))
    assert difference(sd15.sample(reference), expected) > 1e-3


@pytest.mark.parametrize("again", ["BlendModel", "BlendedKSampler"])
def test_a_second_blend_is_refused(sd3, again):
    wanted = preference(*WEIGHTS)
    once = blend_model(sd3.model, sd3.loras(2), wanted)
    with pytest.raises(ValueError, match="already carries a blend.*chain all adapters"):
        if again == "BlendModel":
            blend_model(once, sd3.loras(2), wanted)
        else:
            BlendedKSampler.execute(once, sd3.loras(2), wanted, **sd3.node_sampling())
    with pytest.raises(ValueError, match="already carries a blend"):
        blend_model(once.clone(), sd3.loras(2), wanted)


def test_two_blends_of_one_checkpoint_alternate_without_touching_each_other(sd3):
    a = blend_model(sd3.model, sd3.loras(2), preference(0.2, 0.8))
    b = blend_model(sd3.model, sd3.loras(3), preference(0.5, 0.2, 0.3, kl_scale=2.0))
    first = [sd3.sample(model) for model in (a, b, sd3.model)]
    again = [sd3.sample(model) for model in (b, a, sd3.model, a, b)]
    assert [torch.equal(x, first[i]) for x, i in zip(again, (1, 0, 2, 0, 1), strict=True)] == [True] * 5
    assert hooks_on(sd3.model) == 0


def test_unknown_evaluation_is_refused(sd3):
    with pytest.raises(ValueError, match="evaluation is 'fast': choose one of auto, batched, sequential"):
        blend_model(sd3.model, sd3.loras(1), preference(1.0), evaluation="fast")
