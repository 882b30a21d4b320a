"""The policy's formulas against diffusers' DDIM, torch.distributions and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.training.ddim import ddim_steps
from diffusion_blend.training.policy import gaussian_kl, gaussian_log_prob, guide, step_mean, step_std
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence


def scheduler_for(prediction_type: str, **extra: object) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
        **extra,
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("last", [True, False])
def test_every_step_is_diffusers_ddim_step(prediction_type: str, eta: float, last: bool) -> None:
    scheduler = scheduler_for(prediction_type, set_alpha_to_one=last, steps_offset=1)
    scheduler.set_timesteps(10)
    steps = ddim_steps(
        scheduler.alphas_cumprod, scheduler.timesteps, float(scheduler.final_alpha_cumprod), eta, prediction_type
    )
    generator = torch.Generator().manual_seed(0)
    for k, t in enumerate(scheduler.timesteps):
        latents, output, noise = torch.randn(3, 2, 4, 8, 8, generator=generator).unbind(0)
        index = torch.tensor([k, k])
        ours = step_mean(steps, index, latents, output) + step_std(steps, index, latents) * noise
        theirs = scheduler.step(output, t, latents, eta=eta, variance_noise=noise).prev_sample
        # diffusers rounds 1 - abar in float32, which at abar near 1 costs digits
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_a_last_step_to_alpha_one_has_no_noise_and_is_no_action() -> None:
    scheduler = scheduler_for("epsilon", set_alpha_to_one=True, steps_offset=1)
    scheduler.set_timesteps(4)
    steps = ddim_steps(scheduler.alphas_cumprod, scheduler.timesteps, 1.0, 1.0, "epsilon")
    assert float(steps.std[-1]) == 0
    assert steps.noisy.tolist() == [0, 1, 2]


def test_one_step_by_hand() -> None:
    # abar .25 -> .64, eta 1: s^2 = .36/.75 (1 - .25/.64) = .2925; mean = .8 x0 + sqrt(.36 - .2925) eps
    steps = ddim_steps(torch.tensor([0.64, 0.25]), torch.tensor([1]), 0.64, 1.0, "epsilon")
    assert float(steps.std[0]) == pytest.approx(math.sqrt(0.2925))
    assert float(steps.state[0]) == pytest.approx(0.8 / 0.5)
    assert float(steps.output[0]) == pytest.approx(math.sqrt(0.36 - 0.2925) - 0.8 * math.sqrt(0.75) / 0.5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.05, 3))
def test_log_prob_and_kl_are_those_of_torch_distributions(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sample, mean, reference = torch.randn(3, 2, 4, 3, 5, generator=generator).unbind(0)
    std = torch.full((2, 1, 1, 1), scale)
    policy, base = Normal(mean.double(), std.double()), Normal(reference.double(), std.double())
    expected = policy.log_prob(sample.double()).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(sample, mean, std), expected, rtol=1e-12, atol=1e-9)
    divergence = kl_divergence(policy, base).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, reference, std), divergence, rtol=1e-12, atol=1e-12)


def test_kl_by_the_networks_outputs() -> None:
    """``KL = c_t^2 ||out - out_ref||^2 / (2 s^2)``, the form in which DPOK writes it."""
    scheduler = scheduler_for("epsilon", set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(5)
    steps = ddim_steps(
        scheduler.alphas_cumprod, scheduler.timesteps, float(scheduler.final_alpha_cumprod), 1.0, "epsilon"
    )
    latents, output, reference = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    index = torch.arange(5)
    kl = gaussian_kl(
        step_mean(steps, index, latents, output),
        step_mean(steps, index, latents, reference),
        step_std(steps, index, latents),
    )
    distance = (output - reference).double().square().sum((1, 2, 3))
    torch.testing.assert_close(kl, steps.output**2 * distance / (2 * steps.std**2), rtol=1e-4, atol=1e-9)


def test_gradients() -> None:
    """d log p / d mean = (x - mean) / s^2; d KL / d mean = (mean - reference) / s^2."""
    sample, reference = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(2)).unbind(0)
    mean = torch.zeros(1, 4, 2, 2, requires_grad=True)
    std = torch.full((1, 1, 1, 1), 0.5)
    (by_log_prob,) = torch.autograd.grad(gaussian_log_prob(sample, mean, std).sum(), mean)
    torch.testing.assert_close(by_log_prob, sample / 0.25)
    (by_kl,) = torch.autograd.grad(gaussian_kl(mean, reference, std).sum(), mean)
    torch.testing.assert_close(by_kl, -reference / 0.25)


def test_a_latent_of_stable_diffusions_size_keeps_its_digits() -> None:
    """A change of 1e-6 per element must be seen in the ratio: float32 sums would lose it."""
    generator = torch.Generator().manual_seed(3)
    mean, noise = torch.randn(2, 1, 4, 64, 64, generator=generator).unbind(0)
    std = torch.full((1, 1, 1, 1), 0.1)
    sample = mean + 0.1 * noise
    moved = mean + 1e-6
    difference = gaussian_log_prob(sample, moved, std) - gaussian_log_prob(sample, mean, std)
    exact = (
        Normal(moved.double(), 0.1).log_prob(sample.double()) - Normal(mean.double(), 0.1).log_prob(sample.double())
    ).sum()
    assert float(difference) == pytest.approx(float(exact), rel=1e-5)


def test_guidance_is_affine() -> None:
    cond, uncond = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert float(guide(cond, uncond, 7.5)) == 1 + 7.5 * 2
    assert torch.equal(guide(cond, uncond, 1.0), cond)


@pytest.mark.parametrize("eta", [0.0, -0.5, 1.5, math.nan])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match="eta is"):
        ddim_steps(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), 1.0, eta, "epsilon")


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="do not fall"):
        ddim_steps(torch.tensor([0.9, 0.5]), torch.tensor([1, 1]), 1.0, 1.0, "epsilon")
    with pytest.raises(ValueError, match="zero terminal SNR"):
        ddim_steps(torch.tensor([0.9, 0.0]), torch.tensor([1, 0]), 1.0, 1.0, "epsilon")
    with pytest.raises(ValueError, match="prediction type 'flow'"):
        ddim_steps(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), 1.0, 1.0, "flow")  # pyright: ignore


def test_v_prediction_at_zero_terminal_snr_is_finite() -> None:
    steps = ddim_steps(torch.tensor([0.9, 0.0]), torch.tensor([1, 0]), 1.0, 1.0, "v_prediction")
    assert bool(torch.stack([steps.state, steps.output, steps.std]).isfinite().all())
