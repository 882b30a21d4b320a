"""The image of each row and the call of each step: windows and tiles of a batch, latents with indices, repeated calls."""

import inspect

import comfy_models
import pytest
import torch
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.regional import RegionalPreferenceNode
from diffusion_blend.nodes.samplers import StochasticAdapterSampler


def node(module, name):
    """Return a node of the host."""
    import importlib

    try:
        return getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this host has no {name}")


def in_windows(model, length, overlap, dim=0):
    manual = node("nodes_context_windows", "ContextWindowsManualNode")
    inputs = {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "flat"}
    known = inspect.signature(manual.execute).parameters
    inputs |= {name: False for name in ("freenoise", "causal_window_fix") if name in known}
    return manual.execute(model, context_length=length, context_overlap=overlap, dim=dim, **inputs).args[0]


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "diffusion_blend"]


def test_frames_of_a_window_draw_as_themselves(sd3):
    """Without overlap each window is a batch of its own, so the result is that of the whole batch at once."""
    latent = comfy_models.latent("sd3", 6)
    drawn = blend_model(sd3.model, sd3.loras(2), preference(1, 1), "stochastic")
    whole = sd3.sample(drawn, latent=latent, steps=5)
    windows = sd3.sample(in_windows(drawn, 2, 0), latent=latent, steps=5)  # 0.3.64 needs as many levels as frames
    assert difference(windows, whole) < 1e-4


def test_frames_of_a_window_have_their_own_masks(sd3):
    masks = torch.zeros(6, 8, 8)
    for frame in range(6):
        masks[frame, :, frame:] = 1
    wanted = RegionalPreferenceNode.execute(preference(1, 0), preference(0, 1), mask=masks, feather=0).args[0]
    blended = blend_model(sd3.model, sd3.loras(2), wanted)
    latent = comfy_models.latent("sd3", 6)
    whole = sd3.sample(blended, latent=latent, steps=5)
    assert difference(sd3.sample(in_windows(blended, 2, 0), latent=latent, steps=5), whole) < 1e-4


@pytest.mark.parametrize("chosen", [[4], [2, 3]])
def test_a_latent_from_a_batch_draws_as_in_its_batch(sd3, chosen):
    """Blend Model does not see the latent's indices, so they are found by the noise."""
    latent = comfy_models.latent("sd3", len(chosen)) | {"batch_index": chosen}
    loras, wanted = sd3.loras(3), preference(1, 1, 1)
    sampled = sd3.sample(blend_model(sd3.model, loras, wanted, "stochastic"), latent=latent, steps=5)
    inputs = sd3.node_sampling(latent=latent, steps=5)
    twin = StochasticAdapterSampler.execute(sd3.model, loras, wanted, draws="stratified", **inputs).args[0]["samples"]
    assert torch.equal(sampled, twin)
    batch = sd3.sample(
        blend_model(sd3.model, loras, wanted, "stochastic"), latent=comfy_models.latent("sd3", 5), steps=5
    )
    assert difference(sampled, batch[chosen]) < 1e-4


def tiled(model, tiles_a_call):
    """Call the model with several tiles of the latent, left and right half, tiles in the outer order, as TiledDiffusion does."""
    model = model.clone()

    def halves(apply_model, call):
        x, t, c = call["input"], call["timestep"], call["c"]
        parts = list(x.chunk(2, -1))
        done = []
        for i in range(0, 2, tiles_a_call):
            some = parts[i : i + tiles_a_call]
            repeated = {
                name: torch.cat([value] * len(some)) if isinstance(value, torch.Tensor) else value
                for name, value in c.items()
            }
            done += apply_model(torch.cat(some), torch.cat([t] * len(some)), **repeated).chunk(len(some))
        return torch.cat(done, -1)

    model.set_model_unet_function_wrapper(halves)
    return model


@pytest.mark.parametrize("batch", [1, 2])
def test_tiles_of_an_image_share_its_adapter(sd3, caplog, batch):
    caplog.set_level("INFO")
    latent = comfy_models.latent("sd3", batch)
    model = blend_model(sd3.model, sd3.loras(2), preference(1, 1), "stochastic")
    together = sd3.sample(tiled(model, 2), latent=latent, steps=4)
    apart = sd3.sample(tiled(model, 1), latent=latent, steps=4)
    if batch == 1:
        assert difference(together, apart) < 1e-4
        assert not said(caplog)
    else:  # the image of each tile is unknown, so all tiles have the draws of image 0
        assert difference(together[:1], apart[:1]) < 1e-4
        assert sum("does not say which" in message for message in said(caplog)) == 1


def test_masks_of_several_images_are_refused_where_the_images_are_unknown():
    from diffusion_blend.blending.schedules import Regional
    from diffusion_blend.blending.step_info import StepInfo

    step = StepInfo(images=None, pixels=(4, 4))
    with pytest.raises(ValueError, match="2 masks, and another node calls the model with a part of the batch"):
        Regional((1.0,), (0.0,), torch.zeros(2, 4, 4))(step)
    assert len(Regional((1.0,), (0.0,), torch.zeros(1, 4, 4))(step)) == 1


def early(world, model=None):
    return blend_model(model or world.model, world.loras(2), preference(0.4, 0.6), "early", early_share=0.3)


def test_windows_of_a_video_keep_residuals_of_their_own(worlds, loras_folder):
    """Early over windows without overlap is early over each part of the video alone."""
    from comfy_adapters import kohya, write
    from comfy_world import load_loras

    files = []
    for seed in (1, 2):
        tensors = kohya("wan", seed, rank=3, endings=("self_attn.q", "cross_attn.k", "ffn.0"))
        write(loras_folder, f"windows-{seed}", tensors)
        files.append(f"windows-{seed}.safetensors")
    base = comfy_models.load("wan")
    model = blend_model(base, load_loras(files), preference(0.4, 0.6), "early", early_share=0.3)
    windows = in_windows(model, 2, 0, dim=2)
    positive, negative = (comfy_models.conditioning("wan", seed) for seed in (1, 2))

    def sample(model, noise, latent):
        sampler = comfy_sampler("euler")
        sigmas = torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0])
        import comfy.sample

        inputs = (model, noise, 2.0, sampler, sigmas, positive, negative, latent)
        return comfy.sample.sample_custom(*inputs, disable_pbar=True, seed=3)

    latent = torch.zeros(1, 16, 4, 8, 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    together = sample(windows, noise, latent)
    for part in (slice(0, 2), slice(2, 4)):
        alone = sample(model, noise[:, :, part], latent[:, :, part])
        assert difference(together[:, :, part], alone) < 1e-4


def comfy_sampler(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def test_a_guidance_that_calls_again_keeps_a_residual_of_its_own(sd3):
    """Skip-layer guidance repeats the conditional call without a layer; its scale here is 0."""
    import comfy.samplers

    def guided(model):
        model = model.clone()

        def again(args):
            options = comfy.model_patcher.create_model_options_clone(args["model_options"])
            skip = lambda call, extra: call if "img" not in call else {"img": call["img"], "txt": call["txt"]}  # noqa: E731
            options = comfy.model_patcher.set_model_options_patch_replace(
                options, lambda inputs, _: skip(inputs, None), "dit", "double_block", 1
            )
            (weak,) = comfy.samplers.calc_cond_batch(
                args["model"], [args["cond"]], args["input"], args["sigma"], options
            )
            return args["denoised"] + 1e-7 * (args["cond_denoised"] - weak)

        model.set_model_sampler_post_cfg_function(again)
        return model

    plain = sd3.sample(early(sd3), steps=5)
    assert difference(sd3.sample(guided(early(sd3)), steps=5), plain) < 1e-4


def test_a_conditioning_that_appears_late_is_blended_once(sd3):
    """Its first call has no residual to extrapolate, and the soup alone is another image."""
    import node_helpers

    late = node_helpers.conditioning_set_values(comfy_models.conditioning("sd3", 9), {"start_percent": 0.5})
    first = node_helpers.conditioning_set_values(sd3.positive, {"end_percent": 0.5})
    seen = []
    handle = sd3.model.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
    try:
        sd3.sample(early(sd3), steps=6, positive=first + late, negative=comfy_models.conditioning("sd3", 2, length=12))
    finally:
        handle.remove()
    # Both conditionings blend with the soup at steps 0 or 1, and the late one once more: 3 rows each.
    blended = 2 * (2 + 3)  # step 0 by two rows, step 1 with the soup
    assert len(seen) == blended + 2 * 4 + 2
