"""One adapter per step and image, inside the host's samplers."""

import comfy_models
import pytest
import torch
from comfy_adapters import kohya
from comfy_world import blend_model, difference, preference
from diffusion_blend.blending.plans import Stochastic
from diffusion_blend.nodes.engine.attach import attach
from diffusion_blend.nodes.samplers import StochasticAdapterSampler


class Recorder:
    """A planner that records its questions and answers."""

    def __init__(self, planner):
        self.planner = planner
        self.steps, self.counts, self.rows = [], [], []

    def __call__(self, step):
        plan = self.planner(step)
        self.steps.append(step.index)
        self.counts.append(step.count)
        self.rows.append(plan.gates[0])
        return plan


def record(world, coefficients=(0.3, 0.3, 0.4), draws="independent", **run):
    recorder = Recorder(Stochastic(coefficients, draws))
    samples = world.sample(attach(world.model, world.loras(len(coefficients)), recorder), **run)
    return recorder, samples


def test_same_seed_same_image_and_another_seed_another(world):
    first, again, other = (
        world.sample(blend_model(world.model, world.loras(3), preference(1, 1, 1), "stochastic"), seed=seed, steps=4)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert difference(other, first) > 1e-2


@pytest.mark.parametrize(
    ("sampler_name", "steps"),
    [
        ("euler", [0, 1, 2, 3]),
        ("heun", [0, 0, 1, 1, 2, 2, 3]),
        ("heunpp2", [0, 0, 1, 1, 1, 2, 2, 3]),
        ("dpm_2", [0, 0, 1, 1, 2, 2, 3]),
        ("dpmpp_2s_ancestral", [0, 0, 1, 1, 2, 2, 3]),
        ("dpm_2_ancestral", [0, 0, 1, 1, 2, 2, 3]),
        ("dpmpp_sde", [0, 0, 1, 1, 2, 2, 3]),
        ("exp_heun_2_x0", [0, 0, 1, 1, 2, 2, 3]),
        ("seeds_2", [0, 0, 1, 1, 2, 2, 3]),
        ("dpmpp_2m", [0, 1, 2, 3]),
        ("ddpm", [0, 1, 2, 3]),
        ("lcm", [0, 1, 2, 3]),
    ],
)
def test_every_evaluation_belongs_to_its_step_and_shares_its_draw(sd15, sampler_name, steps):
    import comfy.samplers

    if sampler_name not in comfy.samplers.KSampler.SAMPLERS:
        pytest.skip(f"this host has no sampler {sampler_name}")
    recorder, _ = record(sd15, steps=4, sampler_name=sampler_name, latent=comfy_models.latent("sd15", 1))
    if (
        sampler_name == "heunpp2"
    ):  # three evaluations a step, fewer towards the end, with the host's own weights for them
        assert sorted(recorder.steps) == recorder.steps
        assert set(recorder.steps) == {0, 1, 2, 3}
    else:
        assert recorder.steps == steps
    assert set(recorder.counts) == {4}
    drawn = dict(zip(recorder.steps, recorder.rows, strict=True))
    assert [drawn[step] for step in recorder.steps] == recorder.rows


@pytest.mark.parametrize(
    ("sampler_name", "steps"),
    [
        ("euler", [0, 1, 2, 3]),
        ("heun", [0, 0, 1, 1, 2, 2, 3]),
        ("dpmpp_2s_ancestral", [0, 0, 1, 1, 2, 2, 3]),
        ("dpm_2_ancestral", [0, 0, 1, 1, 2, 2, 3]),
        ("dpmpp_sde", [0, 0, 1, 1, 2, 2, 3]),
    ],
)
def test_on_a_flow_model_too_where_midpoints_are_no_levels(sd3, sampler_name, steps):
    recorder, _ = record(sd3, steps=4, sampler_name=sampler_name, latent=comfy_models.latent("sd3", 1))
    assert recorder.steps == steps


def test_an_eta_below_one_moves_the_midpoint_off_the_levels(sd15):
    import comfy.sample
    import comfy.samplers

    recorder = Recorder(Stochastic((0.5, 0.5), "independent"))
    model = attach(sd15.model, sd15.loras(2), recorder)
    sampler = comfy.samplers.ksampler("dpm_2_ancestral", {"eta": 0.4})
    sigmas = comfy.samplers.KSampler(model, 4, model.load_device, "euler", "normal", 1.0, model.model_options).sigmas
    latent = comfy_models.latent("sd15", 1)["samples"]
    noise = comfy.sample.prepare_noise(latent, 3, None)
    positive, negative = (comfy_models.conditioning("sd15", seed) for seed in (1, 2))
    comfy.sample.sample_custom(
        model, noise, 2.0, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=3
    )
    assert recorder.steps == [0, 0, 1, 1, 2, 2, 3]


def test_cond_and_uncond_share_the_draw_also_in_separate_calls(sd15):
    """Texts of unequal length cannot be batched: the host makes two calls per evaluation."""
    longer = comfy_models.conditioning("sd15", 3, length=12)
    for sampler_name, steps in (("euler", [0, 0, 1, 1, 2, 2]), ("heun", [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])):
        recorder, _ = record(sd15, negative=longer, sampler_name=sampler_name, latent=comfy_models.latent("sd15", 1))
        assert recorder.steps == steps
        drawn = dict(zip(recorder.steps, recorder.rows, strict=True))
        assert [drawn[step] for step in recorder.steps] == recorder.rows


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpmpp_2m"])
def test_it_equals_switching_the_hosts_patched_copies_by_the_draws(world, sampler_name):
    """The reference sends each step's calls to the copy that the host patched, by the recorded draws."""
    run = {"steps": 4, "sampler_name": sampler_name, "latent": comfy_models.latent(world.kind, 2)}
    recorder, samples = record(world, (0.5, 0.2), **run)
    assert any(len(row) == 2 for row in recorder.rows), "no step where the two images differ: choose another seed"
    copies = [world.patched.model(tensors) for tensors in world.adapters[:2]] + [world.patched.model()]
    rows = iter(recorder.rows)

    from comfy_adapters import predict

    def switched(_, call):
        row = next(rows)
        chosen = [gates.index(1.0) if 1.0 in gates else 2 for gates in (row if len(row) == 2 else row * 2)]
        predictions = [predict(copy, call) for copy in copies]
        which = chosen * (call["input"].shape[0] // 2)
        return torch.stack([predictions[which[i]][i] for i in range(len(which))])

    reference = world.model.clone()
    reference.set_model_unet_function_wrapper(switched)
    assert difference(samples, world.sample(reference, **run)) < 1e-4


@pytest.mark.parametrize("draws", ["independent", "stratified"])
def test_an_image_does_not_depend_on_its_batch(world, draws):
    def run(latent):
        return StochasticAdapterSampler.execute(
            world.model, world.loras(3), preference(1, 1, 1), draws=draws, **world.node_sampling(latent=latent, steps=5)
        ).args[0]["samples"]

    together = run(comfy_models.latent(world.kind, 3))
    for image in range(3):
        alone = run(comfy_models.latent(world.kind, 1) | {"batch_index": [image]})
        assert difference(alone, together[image : image + 1]) < 1e-4


def test_stratified_counts_over_a_real_run(sd3):
    recorder, _ = record(sd3, (0.25, 0.45), "stratified", steps=11, latent=comfy_models.latent("sd3", 1))
    counts = [sum(row[0][adapter] for row in recorder.rows) for adapter in (0, 1)]
    assert abs(counts[0] - 0.25 * 11) < 1
    assert abs(counts[1] - 0.45 * 11) < 1


def test_negative_coefficients_are_refused_with_the_reason(sd3):
    with pytest.raises(ValueError, match="negative one cannot be drawn. Set kl_scale between 0 and 1"):
        blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5, kl_scale=1.5), "stochastic")


def test_one_model_call_per_step_however_many_adapters(sd3):
    calls = []
    model = blend_model(sd3.model, sd3.loras(5), preference(1, 1, 1, 1, 1), "stochastic")
    handle = sd3.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    sd3.sample(model, steps=6)
    assert len(calls) <= 7  # one call checks, once for a network, that its images keep their own gates
    calls.clear()
    sd3.sample(model, steps=6)
    handle.remove()
    assert len(calls) == 6


def test_kl_scale_between_draws_the_base_too(sd3):
    recorder, _ = record(sd3, (0.2, 0.2), "stratified", steps=10, latent=comfy_models.latent("sd3", 1))
    assert sum(row == ((0.0, 0.0),) for row in recorder.rows) == 6


def test_the_adapters_differ_from_each_other():
    """The tests above compare images, so they could not fail if the adapters were equal."""
    first, second = kohya("sd3", 1), kohya("sd3", 2)
    assert not any(torch.equal(first[key], second[key]) for key in first)
