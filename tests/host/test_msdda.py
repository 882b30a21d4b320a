"""MSDDA in the host: equal to the blend for equal variances of the steps, and to the closed form for unequal ones."""

import itertools

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy_models
import pytest
import torch
from comfy_world import blend_model, difference, preference
from diffusion_blend.blending.msdda import step_factors
from diffusion_blend.nodes.engine import msdda as engine
from diffusion_blend.nodes.engine.msdda import (
    ancestral_transition,
    factors_of,
    flow_transition,
    renormalised_deviation,
    transition_of,
)
from diffusion_blend.nodes.samplers import BlendedKSampler, MSDDASampler


def msdda(world, weights, etas=(1.0, 1.0, 1.0, 1.0), renormalise=False, **changes):
    inputs = world.node_sampling(**changes)
    inputs.pop("sampler_name")
    names = {f"eta_{i}": eta for i, eta in enumerate(etas, 1)}
    loras = max(i for i, weight in enumerate(weights.weights, 1) if weight > 0)
    return MSDDASampler.execute(
        world.model, world.loras(loras), weights, **names, renormalise=renormalise, **inputs
    ).args[0]["samples"]


@pytest.mark.parametrize("kl_scale", [0.0, 0.5, 1.0, 2.0])
def test_with_equal_etas_it_is_blended_ksampler_with_euler_ancestral(world, kl_scale):
    weights = preference(0.2, 0.3, 0.5, kl_scale=kl_scale)
    run = {"sampler_name": "euler_ancestral", "steps": 4}
    blended = BlendedKSampler.execute(world.model, world.loras(3), weights, **world.node_sampling(**run)).args[0][
        "samples"
    ]
    assert difference(msdda(world, weights, steps=4), blended) < 1e-5


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_equal_etas_below_one_are_the_hosts_ancestral_sampler_of_that_eta(world, eta):
    weights = preference(0.4, 0.6, kl_scale=0.8)
    model = blend_model(world.model, world.loras(2), weights)
    run = world.sampling(steps=4)
    sampler = comfy.samplers.ksampler("euler_ancestral", {"eta": eta})
    sigmas = comfy.samplers.KSampler(
        model, 4, model.load_device, "euler_ancestral", "normal", 1.0, model.model_options
    ).sigmas
    latent = run["latent"]["samples"]
    expected = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, 5),
        4.0,
        sampler,
        sigmas,
        run["positive"],
        run["negative"],
        latent,
        seed=5,
    )
    assert difference(msdda(world, weights, (eta,) * 4, steps=4), expected) < 1e-5


def test_levels_that_repeat_move_nothing(world):
    """A small denoise asks for more levels than the model has, and "simple" repeats some. The host's sampler moves nothing."""
    run = {"scheduler": "simple", "steps": 8, "denoise": 0.005}
    model = world.model
    sampler = comfy.samplers.KSampler(model, 8, model.load_device, "euler", "simple", 0.005, model.model_options)
    assert any(a == b for a, b in itertools.pairwise(sampler.sigmas.tolist()))
    weights = preference(0.2, 0.8)
    inputs = world.node_sampling(sampler_name="euler_ancestral", **run)
    blended = BlendedKSampler.execute(model, world.loras(2), weights, **inputs).args[0]["samples"]
    found = msdda(world, weights, **run)
    assert torch.isfinite(found).all()
    # The host's own ancestral sampler divides by 0 for a flow model that stays at pure noise.
    assert difference(found, blended) < 1e-5 or (world.kind == "sd3" and torch.isnan(blended).any())
    assert torch.isfinite(msdda(world, weights, (0.3, 0.9, 1.0, 1.0), True, **run)).all()


def test_the_noise_of_models_with_another_noise_scale(sd3, monkeypatch):
    """Such models (HiDream-O1) get that many times the noise in every step: the host's ``s_noise``."""
    weights = preference(0.4, 0.6)
    model = blend_model(sd3.model, sd3.loras(2), weights)
    run, device = sd3.sampling(steps=4), sd3.model.load_device
    sigmas = comfy.samplers.KSampler(model, 4, device, "euler", "normal", 1.0, model.model_options).sigmas
    latent = run["latent"]["samples"]
    noise, sampler = comfy.sample.prepare_noise(latent, 5), comfy.samplers.ksampler("euler_ancestral", {"s_noise": 2.0})
    given = (run["positive"], run["negative"], latent)
    expected = comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, *given, seed=5)
    plain = msdda(sd3, weights, steps=4)
    monkeypatch.setattr(engine, "transition_of", lambda _: (flow_transition, 2.0))
    assert difference(msdda(sd3, weights, steps=4), expected) < 1e-5 < difference(plain, expected)


def test_a_flow_models_noise_scale_is_read():
    """Older hosts have none, and other kinds of models do not use it."""
    scaled, plain, other = (
        type("Sampling", bases, values)()
        for bases, values in (
            ((comfy.model_sampling.CONST,), {"noise_scale": 8.0}),
            ((comfy.model_sampling.CONST,), {}),
            ((comfy.model_sampling.EPS,), {"noise_scale": 8.0}),
        )
    )
    found = [transition_of(sampling) for sampling in (scaled, plain, other)]
    assert found == [(flow_transition, 8.0), (flow_transition, 1.0), (ancestral_transition, 1.0)]


def test_unequal_etas_change_the_image_and_favour_the_quieter_adapter(sd3):
    weights = preference(0.5, 0.5)
    only = [msdda(sd3, preference(*w), (0.05, 0.05, 1, 1), steps=4) for w in ((1.0, 0.0), (0.0, 1.0))]
    first_quiet = msdda(sd3, weights, (0.05, 1.5, 1, 1), steps=4)
    assert (first_quiet - only[0]).norm() < (first_quiet - only[1]).norm()


@pytest.mark.parametrize(("sigma", "sigma_next", "eta"), [(14.0, 9.0, 1.0), (2.0, 1.5, 0.4), (0.5, 0.1, 1.7)])
def test_ancestral_transition_is_the_hosts(sigma, sigma_next, eta):
    from comfy.k_diffusion.sampling import get_ancestral_step

    down, up = get_ancestral_step(torch.tensor(sigma).double(), torch.tensor(sigma_next).double(), eta)
    step = ancestral_transition(sigma, sigma_next, eta)
    assert step.s == pytest.approx(float(up), rel=1e-6)
    assert step.a == pytest.approx(float(down) / sigma, rel=1e-6, abs=1e-12)
    assert step.a + step.b == pytest.approx(1)


@pytest.mark.parametrize("transition", [ancestral_transition, flow_transition])
def test_a_step_keeps_the_schedules_noise_level(transition):
    """With an exact x0, x = (signal) x0 + sigma n must become (signal') x0 + sigma' n'."""
    sigma, sigma_next = 0.8, 0.5
    for eta in (0.2, 1.0):
        step = transition(sigma, sigma_next, eta)
        assert (step.a * sigma) ** 2 + step.s**2 == pytest.approx(sigma_next**2)
        signal = 1.0 if transition is ancestral_transition else 1 - sigma
        signal_next = 1.0 if transition is ancestral_transition else 1 - sigma_next
        assert step.a * signal + step.b == pytest.approx(signal_next)


@pytest.mark.parametrize("transition", [ancestral_transition, flow_transition])
def test_the_last_step_is_the_limit_of_small_next_levels(transition):
    tiny = [transition(0.5, 1e-7, eta).s for eta in (0.3, 0.9)]
    last = [transition(0.5, 0.0, eta).s for eta in (0.3, 0.9)]
    assert last[0] / last[1] == pytest.approx(tiny[0] / tiny[1], rel=1e-4)


def test_renormalising_restores_the_schedules_level():
    sigma, sigma_next = 3.0, 2.0
    steps = [ancestral_transition(sigma, sigma_next, eta) for eta in (0.3, 0.9)]
    shares = [0.5 / step.s**2 for step in steps]
    deterministic = sum(p * step.a * sigma for p, step in zip(shares, steps, strict=True)) / sum(shares)
    plain = sum(shares) ** -0.5
    full = renormalised_deviation(steps, (0.5, 0.5), sigma, sigma_next)
    assert deterministic**2 + full**2 == pytest.approx(sigma_next**2)
    assert plain < full


def test_renormalise_changes_nothing_for_equal_etas(sd3):
    weights = preference(0.5, 0.5)
    assert difference(msdda(sd3, weights, renormalise=True), msdda(sd3, weights)) < 1e-5
    unequal = (0.3, 0.9, 1, 1)
    assert difference(msdda(sd3, weights, unequal, renormalise=True), msdda(sd3, weights, unequal)) > 1e-3


def test_the_node_and_the_sweep_share_one_law_of_the_factors():
    node = factors_of((0.25, 0.25), (0.4, 0.8, 1.0, 1.0), (0.5, 0.5))
    assert node == step_factors((0.25, 0.25), (0.4, 0.8))
    assert [(factor.coefficient, factor.eta) for factor in node] == [(0.25, 0.4), (0.25, 0.8), (0.25, 0.4), (0.25, 0.8)]


def test_adapters_past_the_last_eta_use_one():
    assert [factor.eta for factor in factors_of((0.2,) * 5, (0.5,) * 4, (0.2,) * 5)] == [0.5] * 4 + [1.0]


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan")])
def test_impossible_etas_are_refused(eta):
    with pytest.raises(ValueError, match="eta_2 is .*above 0"):
        factors_of((0.5, 0.5), (1.0, eta), (0.5, 0.5))


def test_any_kl_scale_and_noises_make_a_distribution(sd3):
    """The base takes part at each adapter's noise. At every KL scale the precision is the mean of the adapters' precisions."""
    for kl_scale in (-5.0, 5.0):
        assert bool(msdda(sd3, preference(0.5, 0.5, kl_scale=kl_scale), (0.05, 2.0, 1, 1)).isfinite().all())


def test_masks_and_partial_denoising_work_as_in_the_blend(sd15):
    weights = preference(0.5, 0.5)
    generator = torch.Generator().manual_seed(3)
    latent = comfy_models.latent("sd15", 2)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=generator)
    latent["noise_mask"] = (torch.rand(1, 1, 8, 8, generator=generator) > 0.5).float()
    run = {"latent": latent, "denoise": 0.6, "steps": 4}
    blended = BlendedKSampler.execute(
        sd15.model, sd15.loras(2), weights, **sd15.node_sampling(sampler_name="euler_ancestral", **run)
    ).args[0]
    result = msdda(sd15, weights, **run)
    assert difference(result, blended["samples"]) < 1e-5
