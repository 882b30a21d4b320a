"""The model adapters: our rollouts are diffusers' own pipelines; the base is the network with the adapter off."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.models import sdxl, stable_diffusion
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.protocol import predict_guided
from diffusion_blend.training.objectives import importance_ratio
from diffusion_blend.training.policy import gaussian_kl, gaussian_log_prob, step_mean, step_std
from diffusion_blend.training.rollout import collect

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "a dog"]


def tiny_model(folder: Path, seed: int = 0, **extra: Any) -> DiffusersModel:
    base = load_base(BaseConfig(path=str(folder)), CPU, allow_download=False)
    return DiffusersModel(base, AdapterConfig(), seed, **extra)


def disturb(model: DiffusersModel, size: float, seed: int = 1) -> None:
    """Give the adapter an effect: its up-projections start at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def noise(model: DiffusersModel, steps: int, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, steps + 1, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("which", ["tiny_sd", "tiny_sd_epsilon", "tiny_sdxl"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_rollout_is_what_diffusers_pipeline_makes(which: str, scale: float, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    # diffusers' pipelines want sides that are multiples of 8
    base = load_base(BaseConfig(path=str(folder), resolution=8), CPU, allow_download=False)
    model = DiffusersModel(base, AdapterConfig(), 0)
    steps = model.policy_steps(5, 1.0)  # divides 1000: diffusers takes t - 1000 // n for the next timestep
    draws = noise(model, 5, 2)
    ours = collect(model, steps, model.encode_prompts(PROMPTS), draws, scale, measure_kl=False)
    cls = StableDiffusionXLPipeline if which == "tiny_sdxl" else StableDiffusionPipeline
    pipeline = cls.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    taken = iter(draws.unbind(1)[1:])
    original = pipeline.scheduler.step

    @functools.wraps(original)  # the pipeline reads off the signature that eta may be passed
    def step(*arguments: Any, **named: Any) -> Any:
        return original(*arguments, **{**named, "generator": None, "variance_noise": next(taken)})

    pipeline.scheduler.step = step
    size = model.base.resolution[0]
    theirs = pipeline(
        PROMPTS,
        height=size,
        width=size,
        num_inference_steps=5,
        guidance_scale=scale,
        eta=1.0,
        latents=draws[:, 0],
        output_type="pt",
    ).images
    torch.testing.assert_close(ours.images, theirs, rtol=1e-3, atol=1e-4)
    assert float(ours.images.std()) > 0.01  # a blank picture would agree too


def test_a_fresh_adapter_changes_nothing_and_a_disturbed_one_can_be_switched_off(tiny_sdxl: Path) -> None:
    model = tiny_model(tiny_sdxl)
    conditioning = model.encode_prompts(PROMPTS).prompt
    latents, timesteps = torch.randn(2, *model.latent_shape), torch.tensor([10, 700])
    before = model.predict(latents, timesteps, conditioning, base=True)
    assert torch.equal(before, model.predict(latents, timesteps, conditioning, base=False))
    disturb(model, 0.3)
    assert torch.equal(before, model.predict(latents, timesteps, conditioning, base=True))
    assert not torch.allclose(before, model.predict(latents, timesteps, conditioning, base=False), atol=1e-3)
    assert all(parameter.requires_grad for parameter in model.trainable().values())


def test_the_first_pass_over_fresh_data_has_ratio_exactly_one(tiny_sd: Path) -> None:
    """Same network, same batch: the update computes bit for bit what the rollout did."""
    model = tiny_model(tiny_sd)
    disturb(model, 0.1)
    steps = model.policy_steps(6, 1.0)
    conditioning = model.encode_prompts(PROMPTS * 4)
    runs = collect(model, steps, conditioning, noise(model, 6, 8), 3.0, measure_kl=False)
    for k in steps.noisy.tolist():
        index = torch.full((8,), k)
        latents = runs.latents[:, k]
        output = predict_guided(model, latents, steps.timesteps[index], conditioning, 3.0, base=False)
        mean, std = step_mean(steps, index, latents, output), step_std(steps, index, latents)
        ratio = importance_ratio(gaussian_log_prob(runs.latents[:, k + 1], mean, std), runs.log_prob[:, k])
        assert torch.equal(ratio.detach(), torch.ones(8, dtype=torch.float64))


def test_rows_do_not_depend_on_their_neighbours(tiny_sd: Path) -> None:
    """Rows from other trajectories in a batch of the same size: this is what the buffer does to a batch."""
    model = tiny_model(tiny_sd)
    disturb(model, 0.1)
    conditioning = model.encode_prompts(["a"] * 8).prompt
    latents, timesteps = torch.randn(8, *model.latent_shape), torch.arange(8) * 100
    whole = model.predict(latents, timesteps, conditioning, base=False)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = model.predict(latents[order], timesteps[order], conditioning, base=False)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-6)


def test_the_kl_is_a_monte_carlo_estimate_of_the_log_ratio(tiny_sd: Path) -> None:
    """E over trajectories of sum_t log p_theta / p_base equals E of sum_t KL_t: paired, within 4 standard errors."""
    model = tiny_model(tiny_sd)
    disturb(model, 0.7)
    steps = model.policy_steps(5, 1.0)
    rows = 1500
    conditioning = model.encode_prompts(["a red cat"]).prompt
    rows_of = model.encode_prompts(["a red cat"] * rows)
    runs = collect(model, steps, rows_of, noise(model, 5, rows), 1.0, measure_kl=True)
    base_log_prob = torch.zeros_like(runs.log_prob)
    for k in steps.noisy.tolist():
        index = torch.full((rows,), k)
        latents = runs.latents[:, k]
        expanded = {name: tensor.expand(rows, -1, -1) for name, tensor in conditioning.items()}
        with torch.no_grad():
            output = model.predict(latents, steps.timesteps[index], expanded, base=True)
        base_log_prob[:, k] = gaussian_log_prob(
            runs.latents[:, k + 1], step_mean(steps, index, latents, output), step_std(steps, index, latents)
        )
    estimate = (runs.log_prob - base_log_prob).sum(1)
    closed = runs.kl.sum(1)
    difference = estimate - closed
    error = float(difference.std()) / rows**0.5
    assert abs(float(difference.mean())) < 4 * error
    assert float(closed.mean()) > 15 * error  # the KL itself is far from 0, so a formula off by 2 would be seen


def test_gradient_checkpointing_gives_the_same_gradient(tiny_sd: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(tiny_sd, gradient_checkpointing=checkpointing)
        disturb(model, 0.1)
        latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(4))
        timesteps = torch.tensor([1, 500, 900])
        conditioning = model.encode_prompts(["a"] * 3).prompt
        base = model.predict(latents, timesteps, conditioning, base=True)
        output = model.predict(latents, timesteps, conditioning, base=False)
        gaussian_kl(output, base, torch.ones(3, 1, 1, 1)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.trainable().items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and float(gradient.abs().sum()) > 0
        torch.testing.assert_close(gradient, gradients[1][name])


def test_only_the_adapter_is_trained(tiny_sd: Path) -> None:
    model = tiny_model(tiny_sd)
    names = set(model.trainable())
    assert {name for name, p in model.base.unet.named_parameters() if p.requires_grad} == names
    layers = {name.split(".lora_")[0].split("attn")[1][2:] for name in names}
    assert layers == {"to_q", "to_k", "to_v", "to_out.0"}


def test_half_precision_keeps_the_adapter_in_float32(tiny_sd: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd), precision="bf16"), CPU, allow_download=False)
    model = DiffusersModel(base, AdapterConfig(), 0)
    assert base.unet.conv_in.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.trainable().values()} == {torch.float32}
    conditioning = model.encode_prompts(["a"]).prompt
    output = model.predict(torch.randn(1, *model.latent_shape), torch.tensor([5]), conditioning, base=False)
    assert output.dtype == torch.float32
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.trainable().values())


def test_adapters_that_cannot_be(tiny_sd: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd)), CPU, allow_download=False)
    with pytest.raises(ValueError, match="rank 0"):
        DiffusersModel(base, AdapterConfig(rank=0), 0)
    with pytest.raises(ValueError, match="'to_nowhere' names no linear"):
        DiffusersModel(base, AdapterConfig(targets=["to_q", "to_nowhere"]), 0)
    with pytest.raises(ValueError, match="no LoRA targets"):
        DiffusersModel(base, AdapterConfig(targets=[]), 0)


def test_a_call_does_not_walk_over_all_modules(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers does so for a network's device and dtype and to switch adapters; on a UNet each takes milliseconds."""
    model = tiny_model(tiny_sd)
    disturb(model, 0.1)
    conditioning, walk = model.encode_prompts(PROMPTS).prompt, torch.nn.Module.named_modules

    def refuse_the_network(module: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
        assert module is not model.base.unet, "a call walked over all modules of the network"
        return walk(module, *arguments, **named)

    latents, times = noise(model, 0, 2)[:, 0], torch.tensor([900, 500])
    monkeypatch.setattr(torch.nn.Module, "named_modules", refuse_the_network)
    base = model.predict(latents.to(model.device), times, conditioning, base=True)
    trained = model.predict(latents.to(model.device), times, conditioning, base=False)
    assert float((base - trained).detach().abs().max()) > 1e-3
    with pytest.raises(AssertionError, match="walked over all modules"):
        _ = model.base.unet.device


@pytest.mark.parametrize("encoder_of", [stable_diffusion.Encoder, lambda pipe, device: sdxl.Encoder(pipe, 64, device)])
def test_text_encoders_leave_the_device_also_when_the_encoding_fails(encoder_of: Any) -> None:
    places: list[torch.device] = []

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    part = SimpleNamespace(to=places.append)
    pipeline = SimpleNamespace(text_encoder=part, text_encoder_2=part, encode_prompt=fail)
    with pytest.raises(MemoryError):
        encoder_of(pipeline, torch.device("meta"))(PROMPTS)
    assert {place.type for place in places[: len(places) // 2]} == {"meta"}
    assert {place.type for place in places[len(places) // 2 :]} == {"cpu"}
