"""The step of each evaluation, for every sampler of the host, wrappers that change its noise levels, and samplers that go back.

The truth comes from the run itself, afterwards: a sampler calls the host's callback right after the first evaluation of a step.
"""

import comfy.k_diffusion.sampling as k_diffusion
import comfy.sample
import comfy.samplers
import comfy_models
import pytest
import torch
from comfy_world import blend_model, difference, preference
from diffusion_blend.blending.plans import EarlyBlend, Stochastic, make_planner
from diffusion_blend.blending.schedules import Interpolated
from diffusion_blend.nodes.engine.attach import attach
from diffusion_blend.nodes.engine.steps import function_name

STEPS = 6
# They choose noise levels of their own, or call back at the end of a step.
WITH_OWN_LEVELS = {"dpm_fast", "dpm_adaptive"}
CALL_BACK_LATE = {"uni_pc", "uni_pc_bh2"}
FOR_OTHER_MODELS = {"ar_video"}
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in FOR_OTHER_MODELS]


class Journal:
    """A planner that records its steps and the callbacks of the same run."""

    def __init__(self, planner):
        self.planner, self.events, self.rows, self.calls, self.mixes = planner, [], [], [], []

    def __call__(self, step):
        plan = self.planner(step)
        self.events.append(("evaluation", step.index))
        self.rows.append(plan.gates[0][0])
        self.calls.append(len(plan.gates))
        self.mixes.append({gates: float(share) for (gates, *_), share in zip(plan.gates, plan.mix, strict=True)})
        return plan

    def callback(self, step, *_):
        self.events.append(("callback", step))

    @property
    def steps(self):
        return [step for kind, step in self.events if kind == "evaluation"]

    @property
    def meant(self):
        """Return the true steps: the first evaluation before a callback has the callback's step, and the next ones share it."""
        steps, last = [], 0
        for i, (kind, _) in enumerate(self.events):
            if kind == "evaluation":
                after = self.events[i + 1] if i + 1 < len(self.events) else ("end", 0)
                last = after[1] if after[0] == "callback" else last
                steps.append(last)
        return steps


def run(world, sampler, planner=None, steps=STEPS, sigmas=None, scheduler="normal"):
    journal = Journal(planner or Stochastic((0.5, 0.5)))
    model = attach(world.model, world.loras(2), journal)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    if sigmas is None:
        options = (model, steps, model.load_device, "euler", scheduler, 1.0, model.model_options)
        sigmas = comfy.samplers.KSampler(*options).sigmas
    latent = comfy_models.latent(world.kind, 1)["samples"]
    noise = comfy.sample.prepare_noise(latent, 3, None)
    positive, negative = world.positive, world.negative
    inputs = (model, noise, 2.0, sampler, sigmas, positive, negative, latent)
    comfy.sample.sample_custom(*inputs, callback=journal.callback, disable_pbar=True, seed=3)
    return journal


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_host(sd3, name):
    journal = run(sd3, name)
    if name in WITH_OWN_LEVELS | CALL_BACK_LATE:
        assert journal.steps == sorted(journal.steps) or name == "dpm_adaptive"
        assert journal.steps[0] == 0
        assert max(journal.steps) >= STEPS - 2
    else:
        assert journal.steps == journal.meant
        assert set(journal.steps) == set(range(STEPS))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm_adaptive"])  # it takes hundreds of calls
def test_every_sampler_draws_each_adapter_in_proportion_and_blends_early_steps(sd3, name):
    journal = run(sd3, name, Stochastic((0.5, 0.5)), steps=8)
    drawn = dict(zip(journal.steps, journal.rows, strict=True))
    assert [drawn[step] for step in journal.steps] == journal.rows  # one draw a step
    counts = {row: list(drawn.values()).count(row) for row in ((1.0, 0.0), (0.0, 1.0))}
    if set(drawn) == set(range(8)):
        assert set(counts.values()) == {4}
    assert min(counts.values()) >= 1
    early = run(sd3, name, EarlyBlend((0.5, 0.5), 0.5), steps=8)
    assert {count > 1 for step, count in zip(early.steps, early.calls, strict=True) if step in (0, 1, 3)} == {True}
    moving = run(sd3, name, make_planner("blend", Interpolated((1.0, 0.0), (0.0, 1.0))), steps=8)
    assert max(moving.steps) >= 6  # the schedule comes to its end
    for step, mix in zip(moving.steps, moving.mixes, strict=True):
        assert mix.get((0.0, 1.0), 0.0) == pytest.approx(step / 7)


def check_weight_one(world, name):
    """All weight on one adapter is the copy that the host patched with it, by every method."""
    run = {"sampler_name": name, "steps": 4, "latent": comfy_models.latent(world.kind, 1)}
    expected = world.sample(world.patched.model(world.adapters[0]), **run)
    assert difference(world.sample(world.model, **run), expected) > 1e-3
    for method in ("blend", "stochastic", "early"):
        model = blend_model(world.model, world.loras(2), preference(1, 0), method)
        assert difference(world.sample(model, **run), expected) < 1e-4, method


@pytest.mark.parametrize("name", ["dpm_2_ancestral", "lms", "res_multistep", "uni_pc"])
def test_some_samplers_at_weight_one(sd3, name):
    check_weight_one(sd3, name)


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_at_weight_one(sd3, name):
    check_weight_one(sd3, name)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
@pytest.mark.parametrize("churn", [0.5, 10.0])
def test_levels_raised_by_churn(sd3, name, churn):
    journal = run(sd3, comfy.samplers.ksampler(name, {"s_churn": churn}))
    assert journal.steps == journal.meant
    assert set(journal.steps) == set(range(STEPS))


def scaled(inner, factor):
    """Wrap a sampler so that the model gets another noise level, as Detail Daemon and Lying Sigma do."""

    def other_levels(model, x, sigmas, *args, other_sampler, **kwargs):
        def scaled(x, sigma, **inputs):
            return model(x, sigma * factor, **inputs)

        scaled.inner_model = model.inner_model
        return other_sampler.sampler_function(scaled, x, sigmas, *args, **kwargs | other_sampler.extra_options)

    return comfy.samplers.KSAMPLER(other_levels, {"other_sampler": inner})


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m"])
@pytest.mark.parametrize("factor", [0.9, 0.95, 1.05])
def test_wrappers_that_change_the_level_and_hide_the_name(sd3, name, factor):
    journal = run(sd3, scaled(comfy.samplers.ksampler(name), factor))
    assert journal.steps == journal.meant
    assert set(journal.steps) == set(range(STEPS))


def test_raised_and_lowered_levels_of_a_variance_exploding_model_too(sd15):
    churned = run(sd15, comfy.samplers.ksampler("heun", {"s_churn": 10.0}), scheduler="karras", steps=4)
    lowered = run(sd15, scaled(comfy.samplers.ksampler("euler"), 0.9), scheduler="karras", steps=4)
    assert churned.steps == churned.meant == [0, 0, 1, 1, 2, 2, 3]
    assert lowered.steps == lowered.meant == [0, 1, 2, 3]


def test_the_name_of_a_wrapped_sampler_is_found():
    inner = comfy.samplers.ksampler("dpm_2_ancestral")
    assert function_name(scaled(scaled(inner, 0.9), 1.1)) == "sample_dpm_2_ancestral"


@pytest.mark.parametrize("back", [1, 3])
def test_a_sampler_that_goes_back(sd3, back):
    """Each segment of the schedule is a call of the inner sampler, which counts its steps from 0, as in Restart."""

    def restarting(model, x, sigmas, extra_args=None, callback=None, disable=None, other_sampler=None):
        inputs = {"extra_args": extra_args, "callback": callback, "disable": disable}
        x = k_diffusion.sample_euler(model, x, sigmas[:5], **inputs)
        return k_diffusion.sample_euler(model, x, sigmas[4 - back :], **inputs)

    journal = run(sd3, comfy.samplers.KSAMPLER(restarting, {"other_sampler": comfy.samplers.ksampler("euler")}))
    assert journal.steps == [0, 1, 2, 3, *range(4 - back, STEPS)]


def test_rising_levels_count_from_their_start(sd3):
    """Unsampling goes from the image to the noise."""
    sigmas = torch.linspace(0.05, 1.0, STEPS + 1)
    assert run(sd3, "euler", sigmas=sigmas).steps == list(range(STEPS))


def test_a_sampler_of_ones_own_counts_by_its_levels(sd3):
    def own(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for level in (1.0, 0.93, 0.7, 0.65, 0.4, 0.1):
            x = model(x, sigmas.new_full((1,), level), **(extra_args or {}))
        return x

    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert run(sd3, comfy.samplers.KSAMPLER(own), sigmas=sigmas).steps == [0, 0, 1, 1, 2, 3]
