"""Flow-matching bases: the SDE as a policy against closed forms, and whole pipelines against diffusers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.flow import flow_steps
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.flux import pack, unpack
from diffusion_blend.training.policy import PolicySteps, noise_to_level, step_mean, training_target
from diffusion_blend.training.rollout import collect
from gaussian_model import GaussianModel, best_policy, chain, final_moments
from tiny_pipelines import tiny_tokenizer
from torch import Tensor
from training_runs import PROMPTS, make_trainer, settings, tiny_trainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

CPU = torch.device("cpu")


class FlowGaussian(GaussianModel):
    """The same Gaussian under ``x_t = (1 - t) x_0 + t eps``; parameters are per thousandth of t."""

    def policy_steps(self, steps: int, eta: float, noisy: Iterable[int] | None = None) -> PolicySteps:  # pyright: ignore
        return flow_steps(torch.linspace(1, 0, steps + 1), eta, noisy)

    def base_line(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``v = E[eps - x_0 | x_t]`` is ``a x + b``."""
        t = timesteps.double() / 1000
        variance = (1 - t).square() * self.variance + t.square()
        slope = (t - (1 - t) * self.variance) / variance
        return slope, -self.mean - slope * (1 - t) * self.mean

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], *, base: bool) -> Tensor:
        slope, shift = (line.float() for line in self.base_line(timesteps))
        place = (timesteps - 1).long().clamp(min=0)
        if not base:
            slope, shift = slope + self.slope[place], shift + self.shift[place]
        return slope.view(-1, 1, 1, 1) * latents + shift.view(-1, 1, 1, 1)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_sde_has_the_marginals_of_the_ode(eta: float) -> None:
    """With many steps x_0 is N(mean, variance), however large the noise."""
    model = FlowGaussian(0.5, 0.6)
    steps = model.policy_steps(2000, eta)
    mean, variance = final_moments(chain(model, steps, base=True), steps.std)  # pyright: ignore[reportArgumentType]
    assert mean == pytest.approx(0.5, abs=0.01)
    assert variance == pytest.approx(0.6, rel=0.02)


def test_one_step_by_hand() -> None:
    # t = .5 -> .25, eta .8: s^2 = .64, x' = x - .25 [v + .64 (x + .5 v)] + .8 * .5 noise
    steps = flow_steps(torch.tensor([0.5, 0.25, 0.0]), 0.8)
    assert float(steps.state[0]) == pytest.approx(1 - 0.25 * 0.64)
    assert float(steps.output[0]) == pytest.approx(-0.25 * (1 + 0.64 * 0.5))
    assert float(steps.std[0]) == pytest.approx(0.4)


def test_at_t_1_the_next_time_stands_in_the_denominator() -> None:
    steps = flow_steps(torch.tensor([1.0, 0.75, 0.0]), 0.7)
    assert float(steps.std[0]) == pytest.approx(0.7 * math.sqrt(1 / 0.25 * 0.25))
    assert bool(torch.stack([steps.state, steps.output, steps.std]).isfinite().all())


def test_steps_without_noise_are_diffusers_euler_steps_and_targets_lead_back() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    steps = flow_steps(scheduler.sigmas, 0.7, range(2, 4))
    assert steps.noisy.tolist() == [2, 3]
    torch.testing.assert_close(steps.timesteps, scheduler.timesteps)
    clean, noise, output = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for k, t in enumerate(scheduler.timesteps):
        index = torch.tensor([k])
        noisy = noise_to_level(steps, index, clean, noise)
        torch.testing.assert_close(noisy, scheduler.scale_noise(clean, t[None], noise), rtol=1e-5, atol=1e-5)
        found = noisy + steps.x0_output[k].float() * training_target(steps, index, clean, noise)
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)
        theirs = scheduler.step(output, t, noisy).prev_sample
        if k not in (2, 3):
            torch.testing.assert_close(step_mean(steps, index, noisy, output), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("times", [[1.0, 1.0, 0.0], [0.2, 0.5, 0.0], [1.2, 0.5, 0.0]])
def test_times_that_cannot_be(times: list[float]) -> None:
    with pytest.raises(ValueError, match="do not fall from 1 to 0"):
        flow_steps(torch.tensor(times), 0.7)
    with pytest.raises(ValueError, match="eta is 0"):
        flow_steps(torch.tensor([1.0, 0.0]), 0)


@pytest.mark.parametrize(("curvature", "gradient"), [(0.0, 1.0), (2.0, 2.5)])
def test_training_reaches_the_best_policy(curvature: float, gradient: float, tmp_path: Path) -> None:
    def reward(images: Tensor, prompts: Any) -> Tensor:
        x = images[:, 0, 0, 0].double()
        return -curvature / 2 * x**2 + gradient * x

    config = settings(
        tmp_path / "run",
        "draft",
        rewards={"known": 1.0},
        sampling={"steps": 20, "samples": 512, "batch": 512, "eta": 0.7},
        algorithm={"kl_weight": 1.0},
        optimizer={"learning_rate": 0.03, "clip_norm": 1e9},
        run={"iterations": 150, "stop_diversity": 0.0, "save_every": 10**6},
    )
    model = FlowGaussian(0.5, 0.6)
    trainer = make_trainer(config, model, {"known": reward}, ["x"])
    trainer.run()
    steps = trainer.context.steps
    base = chain(model, steps, base=True)  # pyright: ignore[reportArgumentType]
    best = final_moments(best_policy(base, steps.std, curvature, gradient, 1.0), steps.std)
    place = (steps.timesteps - 1).long().clamp(min=0)
    slope, shift = model.base_line(steps.timesteps)
    slope, shift = slope + model.slope.detach().double()[place], shift + model.shift.detach().double()[place]
    found = final_moments((steps.state + steps.output * slope, steps.output * shift), steps.std)
    before = final_moments(base, steps.std)
    print(f"base {before}, trained {found}, best {best}")
    assert abs(best[0] - before[0]) > 0.2
    assert found == pytest.approx(best, abs=0.03)


def clip_config(hidden: int, projection: int) -> CLIPTextConfig:
    sizes: dict[str, Any] = {"vocab_size": 78, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    return CLIPTextConfig(**sizes, projection_dim=projection, bos_token_id=76, eos_token_id=77, pad_token_id=77)


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=1,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_tiny_sd3(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tiny_tokenizer(folder / "words")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(),
        text_encoder=CLIPTextModelWithProjection(clip_config(32, 16)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16, 16)),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd3(tmp_path_factory.mktemp("flow") / "sd3")


def model_of(folder: Path) -> DiffusersModel:
    return DiffusersModel(
        load_base(BaseConfig(path=str(folder), resolution=16), CPU, allow_download=False), AdapterConfig(), 0
    )


def disturb(model: DiffusersModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_sd3_rollout_without_noise_is_diffusers_pipeline(scale: float, tiny_sd3: Path) -> None:
    model = model_of(tiny_sd3)
    draws = torch.randn(2, 5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    ours = collect(
        model, model.policy_steps(4, 0.7, []), model.encode_prompts(PROMPTS), draws, scale, measure_kl=False
    ).images
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, height=16, width=16, num_inference_steps=4, guidance_scale=scale, latents=draws[:, 0], output_type="pt"
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert float(ours.std()) > 0.01


def test_an_sd3_adapter_file_changes_diffusers_pipeline_as_peft_changes_the_network(
    tiny_sd3: Path, tmp_path: Path
) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd3), resolution=16), CPU, allow_download=False)
    model = DiffusersModel(base, AdapterConfig(rank=2, alpha=6.0), 0)
    disturb(model)
    (tmp_path / "adapter.safetensors").write_bytes(model.export({"format": "pt"}))
    conditioning = model.encode_prompts(PROMPTS).prompt
    latents, times = torch.randn(2, *model.latent_shape), torch.tensor([100.0, 900.0])
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, text_encoder_3=None, tokenizer_3=None)
    plain = pipeline.transformer(latents, timestep=times, return_dict=False, **conditioning)[0]
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    theirs = pipeline.transformer(latents, timestep=times, return_dict=False, **conditioning)[0]
    ours = model.predict(latents, times, conditioning, base=False)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert float((plain - ours).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["dpok", "grpo", "nft", "draft"])
def test_every_algorithm_trains_an_sd3(name: str, tiny_sd3: Path, tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run",
        name,
        sampling={"steps": 4, "samples": 8, "batch": 4, "eta": 0.7, "noisy_steps": "auto"},
        algorithm={"buffer": 64, "updates": 2, "group": 4, "kl_weight": 0.01},
        adapter={"rank": 2, "alpha": 2.0, "targets": ["to_q", "to_v"]},
        run={"iterations": 2},
    )
    trainer = tiny_trainer(tiny_sd3, config)
    trainer.run()
    assert all(math.isfinite(row["reward"]) for row in trainer.state.history)
    assert any(
        float(value.detach().abs().max()) > 0
        for key, value in trainer.context.model.trainable().items()
        if "lora_B" in key
    )


def save_tiny_flux(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tiny_tokenizer(folder / "words")
    t5: dict[str, Any] = {"vocab_size": 78, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(clip_config(32, 32)),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(T5Config(**t5)),
        tokenizer_2=words,
    ).save_pretrained(folder)
    return folder


def test_packing_is_undone() -> None:
    latents = torch.randn(2, 4, 6, 8)
    assert torch.equal(unpack(pack(latents), 4, 6, 8), latents)
    pipeline_tokens = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(pack(latents), pipeline_tokens)


def test_a_flux_rollout_without_noise_is_diffusers_pipeline(tmp_path: Path) -> None:
    folder = save_tiny_flux(tmp_path / "flux")
    model = model_of(folder)
    assert model.latent_shape == (4, 8, 8)
    draws = torch.randn(2, 5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = model.policy_steps(4, 0.7, [])
    ours = collect(model, steps, model.encode_prompts(PROMPTS), draws, 1.0, measure_kl=False).images
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=3.5,
        latents=pack(draws[:, 0]),
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert float(ours.std()) > 0.01
