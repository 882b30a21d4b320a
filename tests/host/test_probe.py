"""The probe against gaps from copies that the host patched, and against the blend, which it must not change."""

import re
import sys

import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.engine import corrected
from diffusion_blend.nodes.engine.probe import METHODS, linearity_gap, probe_run
from diffusion_blend.nodes.probe import SAME, BlendProbe, verdict
from diffusion_blend.nodes.regional import RegionalPreferenceNode
from diffusion_blend.nodes.samplers import BlendedKSampler, coefficients_of
from diffusion_blend.nodes.schedule import PreferenceScheduleNode


def sampling(world, **changes):
    inputs = world.node_sampling(latent=comfy_models.latent(world.kind, 1), **changes)
    del inputs["denoise"]
    return inputs


def probe(world, wanted, loras=None, **changes):
    loras = loras or world.loras(2)
    return probe_run(world.model, loras, coefficients_of(wanted, loras), **sampling(world, **changes))


def test_the_gap_by_hand():
    base = torch.tensor([1.0, 1.0])
    assert linearity_gap(torch.tensor([4.0, 5.0]), torch.tensor([4.0, 3.0]), base) == (pytest.approx(2 / 5), 5.0)
    assert linearity_gap(base, base, base) == (0.0, 0.0)
    assert linearity_gap(base, base + 1, base)[0] == float("inf")


def test_gaps_are_those_of_the_hosts_patched_copies(sd3):
    """An independent reference: at every step of the blend, the copies' predictions after guidance."""
    import nodes as host_nodes
    from comfy.patcher_extension import WrappersMP
    from comfy_adapters import Patched

    wanted = preference(0.4, 0.6, kl_scale=1.5)
    stacked = sd3.model
    for file, strength in zip(sd3.files[:2], (0.6, 0.9), strict=True):
        (stacked,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(stacked, file, strength)
    soup = Patched("sd3")  # copies of its own for the stack
    tensors = [
        {key: value * (factor if "lora_up" in key else 1) for key, value in adapter.items()}
        for adapter, factor in zip(sd3.adapters[:2], (0.6, 0.9), strict=True)
    ]
    copies = {
        "soup": soup.model(*tensors),
        "base": sd3.patched.model(),
        "blend": sd3.patched.blended(sd3.adapters[:2], [0.6, 0.9]),
    }
    chosen, gaps = ["blend"], []
    from comfy_adapters import predict

    reference = sd3.patched.model().clone()

    def switched(_, call):
        if chosen[0] == "blend":
            return copies["blend"].model_options["model_function_wrapper"](None, call)
        return predict(copies[chosen[0]], call)

    def measured(executor, *args, **kwargs):
        denoised = {}
        for chosen[0] in ("soup", "base", "blend"):
            denoised[chosen[0]] = executor(*args, **kwargs)
        missed, effect = ((denoised["blend"] - denoised[other]).norm() for other in ("soup", "base"))
        gaps.append(float(missed / effect))
        return denoised["blend"]

    reference.set_model_unet_function_wrapper(switched)
    reference.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", measured)
    latent = sd3.sample(reference, latent=comfy_models.latent("sd3", 1))
    found, result = probe(sd3, wanted)
    assert found.gaps == pytest.approx(gaps, rel=1e-3)
    assert found.steps == [0, 1, 2]
    assert min(found.gaps) > 0.01
    assert difference(result["samples"], latent) < 1e-4


@pytest.mark.parametrize(
    "sampler_name", ["euler_ancestral", "heun", "dpmpp_2m", "euler_ancestral_cfg_pp", "uni_pc", "ddim"]
)
@pytest.mark.parametrize("moving", [False, True])
def test_the_latent_is_blended_ksamplers_bit_for_bit(sd3, sampler_name, moving):
    wanted = preference(0.3, 0.7)
    if moving:
        moving = {"curve": "linear", "start_percent": 0.0, "end_percent": 1.0}
        wanted = PreferenceScheduleNode.execute(wanted, preference(0.9, 0.1), **moving).args[0]
    run = sampling(sd3, sampler_name=sampler_name, steps=4)
    found, latent = probe(sd3, wanted, sampler_name=sampler_name, steps=4)
    (expected,) = BlendedKSampler.execute(sd3.model, sd3.loras(2), wanted, denoise=1.0, **run).args
    assert torch.equal(latent["samples"], expected["samples"])
    assert found.steps == [0, 1, 2, 3]
    assert hooks_on(sd3.model) == 0


def test_one_adapter_at_full_weight_needs_no_blend(sd3):
    image, text, mean_gap, _ = BlendProbe.execute(sd3.model, sd3.loras(2), preference(1.0, 0.0), **sampling(sd3)).args
    assert mean_gap == 0
    assert text.startswith("Plain stacking gives the same image: its predictions miss 0.0% of the adapters' effect")
    assert "(1 model calls)" in text
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.dtype == torch.float32
    assert 0 <= image.min() < 0.5 < image.max() <= 1


def test_strong_adapters_change_it(sd3):
    loras = load_loras(sd3.files[:2], [3.0, 3.0])
    image, text, mean_gap, _ = BlendProbe.execute(sd3.model, loras, preference(0.5, 0.5), **sampling(sd3)).args
    assert mean_gap > SAME
    assert text.startswith(f"Blending changes it by {mean_gap:.1%} of the adapters' effect")
    assert re.search(
        r"one step takes \d\S* s for the blend \(2 model calls\), \d\S* s for plain stacking and \d\S* s", text
    )
    flat = BlendProbe.execute(sd3.model, sd3.loras(2), preference(1.0, 0.0), **sampling(sd3)).args[0]
    assert not torch.equal(image, flat)


def test_seconds_are_the_median_after_the_first_step(sd3):
    found, _ = probe(sd3, preference(0.5, 0.5), steps=4)
    assert all(len(found.seconds[method]) == 4 and min(found.seconds[method]) > 0 for method in METHODS)
    found.seconds["blend"] = [100.0, 2.0, 1.0, 3.0]
    assert found.seconds_per_step("blend") == 2.0
    assert "2 s for the blend" in verdict(found)


def test_what_cannot_be_compared_is_refused(sd3):
    with pytest.raises(ValueError, match="is kl_scale 0"):
        probe(sd3, preference(0.5, 0.5, kl_scale=0.0))
    region = RegionalPreferenceNode.execute(
        preference(1, 0), preference(0, 1), mask=torch.ones(1, 8, 8), feather=0
    ).args[0]
    with pytest.raises(ValueError, match="connect a preference without regions"):
        probe(sd3, region)


def test_without_matplotlib_it_says_so_before_sampling(sd3, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    calls = []
    handle = sd3.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="needs matplotlib, which is not installed"):
        BlendProbe.execute(sd3.model, sd3.loras(2), preference(1, 1), **sampling(sd3))
    handle.remove()
    assert calls == []
    assert blend_model(sd3.model, sd3.loras(2), preference(1, 1)) is not None


def batch_of_three(world, **changes):
    inputs = world.node_sampling(latent=comfy_models.latent(world.kind, 3), sampler_name="euler_ancestral", **changes)
    del inputs["denoise"]
    return inputs


def test_path_weights_are_those_of_the_corrected_sampler(world, monkeypatch):
    """Its own loop, with one candidate, sees the same images. The probe does not change the blend."""
    wanted, loras, seen = preference(0.4, 0.6, kl_scale=0.8), world.loras(2), []
    inputs = batch_of_three(world)
    found, latent = probe_run(world.model, loras, coefficients_of(wanted, loras), **inputs)
    blended = BlendedKSampler.execute(world.model, loras, wanted, **inputs, denoise=1.0).args[0]
    assert difference(latent["samples"], blended["samples"]) < 1e-5
    plain = corrected.draw_one
    monkeypatch.setattr(corrected, "draw_one", lambda weights, uniform: seen.append(weights) or plain(weights, uniform))
    del inputs["sampler_name"]
    corrected.sample_with_correction(world.model, loras, coefficients_of(wanted, loras), 1, 0.0, **inputs, denoise=1.0)
    assert found.log_weights.tolist() == pytest.approx(seen[0][:, 0].tolist(), rel=1e-3)
    assert found.log_weights.std() > 1e-3
    weights = found.log_weights.softmax(0)
    share = float(1 / (weights.square().sum() * 3))
    assert found.share == pytest.approx(share)
    assert f"3 images have an effective share of {share:.0%} (at least 33%, " in verdict(found)


def test_one_image_or_another_sampler_has_no_share(sd15):
    wanted = preference(0.5, 0.5)
    assert probe(sd15, wanted, sampler_name="euler_ancestral")[0].share is None
    found = probe(sd15, wanted)[0]
    assert found.share is None
    assert "effective share" not in verdict(found)
