"""The corrected blend in the host, against a loop of its own on copies of the network that the host itself patched."""

import math

import comfy.sample
import comfy.samplers
import comfy_models
import pytest
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy_world import difference, preference
from diffusion_blend.blending.path_weights import Particles
from diffusion_blend.nodes.corrected import CorrectedBlendSampler
from diffusion_blend.nodes.engine.corrected import CandidateNoise, report
from diffusion_blend.nodes.samplers import BlendedKSampler


def corrected(world, weights, particles=3, resample_below=0.5, **changes):
    inputs = world.node_sampling(**changes)
    inputs.pop("sampler_name")
    loras = world.loras(len(weights.weights) if len(weights.weights) < 4 else 2)
    return CorrectedBlendSampler.execute(
        world.model, loras, weights, particles=particles, resample_below=resample_below, **inputs
    ).args[0]["samples"]


@pytest.mark.parametrize("kl_scale", [0.7, 1.0, 1.5])
def test_one_particle_is_blended_ksampler_with_euler_ancestral(world, kl_scale):
    weights = preference(0.3, 0.7, kl_scale=kl_scale)
    run = {"steps": 3}
    blended = BlendedKSampler.execute(
        world.model, world.loras(2), weights, **world.node_sampling(sampler_name="euler_ancestral", **run)
    ).args[0]["samples"]
    assert difference(corrected(world, weights, particles=1, **run), blended) < 1e-5


def transition(flow, sigma, following):
    """The ancestral Euler step ``N(a x + b D, s^2)``, written out once more."""
    if flow:
        down = following * following / sigma
        scale = (1 - following) / (1 - down)
        return scale * down / sigma, scale * (1 - down / sigma), math.sqrt(following**2 - (down * scale) ** 2)
    up = following * math.sqrt(1 - (following / sigma) ** 2)
    ratio = math.sqrt(following**2 - up**2) / sigma
    return ratio, 1 - ratio, up


def predictions_of(world, patched, x, sigma, cfg):
    """x0 after guidance by the host's own code on a MODEL, in a sampler function of one evaluation."""
    seen = []

    def evaluate(model, _noise, _sigmas, extra_args=None, callback=None, disable=None):
        seen.append(model(x.clone(), torch.full([x.shape[0]], sigma), **extra_args))
        return seen[0]

    inputs, empty = world.sampling(), torch.zeros_like(x)
    comfy.sample.sample_custom(
        patched,
        empty,
        cfg,
        comfy.samplers.KSAMPLER(evaluate),
        torch.tensor([sigma, 0.0]),
        inputs["positive"],
        inputs["negative"],
        empty,
        seed=5,
    )
    return seen[0]


@pytest.mark.parametrize("below", [0.0, 1.0])
def test_it_is_the_algorithm_written_out_on_patched_copies(world, below):
    """KL scale .8, so that the base takes part; every step resampled (1) or none (0)."""
    weights, mix, count, cfg = preference(0.25, 0.75, kl_scale=0.8), (0.2, 0.6, 0.2), 2, 4.0
    patched = [[world.adapters[0]], [world.adapters[1]], []]
    plain = world.model
    sampling = plain.model.model_sampling
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    sigmas = comfy.samplers.KSampler(plain, 2, plain.load_device, "euler_ancestral", "normal", 1.0, {}).sigmas
    latent = world.sampling()["latent"]["samples"]
    noise = CandidateNoise(5, None)
    fixed = comfy.sample.fix_empty_latent_channels(plain, latent)
    x = [sampling.noise_scaling(sigmas[0], noise.start(k, fixed), torch.zeros_like(fixed), True) for k in range(count)]
    draws = [default_noise_sampler(fixed, seed=noise.seed_of(k)) for k in range(count)]  # the host's, of each version
    uniform = noise.uniform(len(latent))
    log_weights = torch.zeros(len(latent), count, dtype=torch.double)
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        a, b, s = transition(flow, sigma, following) if following > 0 else (0.0, 1.0, 0.0)
        for k in range(count):
            found = [predictions_of(world, world.patched.model(*own), x[k], sigma, cfg) for own in patched]
            means = [(a * x[k] + b * d).double() for d in found]
            middle = sum(c * mean for c, mean in zip(mix, means, strict=True))
            if following > 0:
                square = sum(c * ((mean - middle) ** 2).flatten(1).sum(1) for c, mean in zip(mix, means, strict=True))
                log_weights[:, k] -= square / (2 * s**2)
                middle = middle + s * draws[k](sigma, following).double()
            x[k] = middle.float()
        u = torch.rand(len(latent), generator=uniform)
        if below == 1.0:
            x, log_weights = resampled(x, log_weights, u, count)
    u = torch.rand(len(latent), generator=uniform)
    share = log_weights.softmax(1)[:, 0]
    expected = torch.stack([x[0 if u[image] < share[image] else 1][image] for image in range(len(latent))])
    expected = plain.model.process_latent_out(expected)
    assert difference(corrected(world, weights, count, below, steps=2, cfg=cfg), expected) < 1e-4


def resampled(x, log_weights, u, count):
    """Systematic resampling of two candidates, written out: points u / 2 and (u + 1) / 2."""
    first = log_weights.softmax(1)[:, 0]
    kept = [[0 if (float(u[i]) + j) / 2 < float(first[i]) else 1 for j in range(count)] for i in range(len(u))]
    moved = [torch.stack([x[kept[i][k]][i] for i in range(len(u))]) for k in range(count)]
    return moved, torch.zeros_like(log_weights)


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
    assert difference(corrected(sd15, weights, particles=1, **run), blended["samples"]) < 1e-5
    result = corrected(sd15, weights, particles=3, **run)
    outside = (latent["noise_mask"] == 0).expand_as(result)
    assert difference(result[outside], latent["samples"][outside]) < 1e-5


def test_equal_adapters_leave_the_weights_equal(sd15, monkeypatch):
    from diffusion_blend.nodes.engine import corrected as module

    said = []
    monkeypatch.setattr(module, "notify", said.append)
    corrected(sd15, preference(1.0, 0.0), particles=3)
    assert "3 candidates of an image count as 3.0 equal ones" in said[0]
    assert "resampled 0.0 times" in said[0]


@pytest.mark.parametrize(("largest", "words"), [(1.5, "KL scale above 1"), (1.0, "Use more particles")])
def test_degenerate_weights_are_said(largest, words):
    weights = Particles(1, 4, 0.5)
    weights.advance(torch.tensor([[50.0, 0, 0, 0]]), torch.zeros(1))
    assert words in report(weights, largest)
    weights = Particles(1, 4, 0.5)
    weights.advance(torch.zeros(1, 4), torch.zeros(1))
    assert words not in report(weights, largest)


def test_candidates_have_noise_of_their_own_and_the_first_has_the_hosts():
    noise = CandidateNoise(7, None)
    like = torch.zeros(2, 4, 3, 3)
    assert torch.equal(noise.start(0, like), comfy.sample.prepare_noise(like, 7))
    assert len({noise.seed_of(k) for k in range(64)}) == 64
    assert max(noise.seed_of(k) for k in range(64)) < 2**63


def test_a_region_is_refused(sd15):
    from diffusion_blend.nodes.regional import RegionalPreferenceNode

    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    region = RegionalPreferenceNode.execute(preference(1.0, 0.0), preference(0.0, 1.0), mask=mask, feather=0).args[0]
    inputs = sd15.node_sampling()
    inputs.pop("sampler_name")
    with pytest.raises(ValueError, match="weighs whole images"):
        CorrectedBlendSampler.execute(sd15.model, sd15.loras(2), region, particles=2, resample_below=0.5, **inputs)
