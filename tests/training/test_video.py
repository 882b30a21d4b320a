"""Videos as samples, on a tiny Wan pipeline: latents [B, C, F, H, W], and frames that rewards score as images."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusion_blend.artifacts.pictures import film_strips
from diffusion_blend.rewards.protocol import score
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.rollout import Trajectories, collect
from torch import Tensor
from training_runs import settings, tiny_trainer

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "a dog"]
ETA = 0.7
LORA = AdapterConfig(rank=2, alpha=6.0)


def model_of(folder: Path, frames: int, **base: Any) -> DiffusersModel:
    """A model whose adapter differs from zero."""
    own = load_base(BaseConfig(path=str(folder), resolution=16, frames=frames), CPU, allow_download=False)
    model = DiffusersModel(dataclasses.replace(own, **base), LORA, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def rollout(model: DiffusersModel, scale: float = 1.0) -> tuple[Trajectories, Tensor]:
    draws = torch.randn(2, 5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = model.policy_steps(4, ETA)
    return collect(model, steps, model.encode_prompts(PROMPTS), draws, scale, measure_kl=True), draws


def test_a_video_of_one_frame_is_the_image_bit_for_bit(folders: dict[str, Path]) -> None:
    image = model_of(folders["wan"], 1)
    video = model_of(folders["wan"], 1, latent_shape=(4, 1, 2, 2))
    assert image.latent_shape == (4, 2, 2)
    ours, _ = rollout(image, scale=3.0)
    other, _ = rollout(video, scale=3.0)
    assert torch.equal(ours.latents, other.latents[:, :, :, 0])
    assert torch.equal(ours.images, other.images[:, 0])
    assert torch.equal(ours.base_mean, other.base_mean[:, :, :, 0])
    assert torch.equal(ours.log_prob, other.log_prob)
    assert torch.equal(ours.kl, other.kl)
    assert float(ours.kl.min()) > 0


def test_log_probability_and_kl_of_five_frames_are_the_closed_forms(folders: dict[str, Path]) -> None:
    """Flow-GRPO's step (arXiv 2505.05470, eq. 9) and torch's Gaussians, from the network's own call."""
    model = model_of(folders["wan"], 5)
    assert model.latent_shape == (4, 2, 2, 2)
    runs, _ = rollout(model)
    times = [*(model.policy_steps(4, ETA).timesteps.double() / 1000).tolist(), 0.0]
    prompt = model.encode_prompts(PROMPTS).prompt["encoder_hidden_states"]
    for k, (t, later) in enumerate(itertools.pairwise(times)):
        dt, x = t - later, runs.latents[:, k]
        squared = ETA**2 * t / (1 - (t if t < 1 else later))

        def gaussian(
            x: Tensor = x, t: float = t, dt: float = dt, squared: float = squared
        ) -> torch.distributions.Normal:
            call = {"timestep": torch.full((2,), 1000 * t), "encoder_hidden_states": prompt, "return_dict": False}
            with torch.no_grad():
                v = model.base.unet(hidden_states=x, **call)[0].double()  # pyright: ignore[reportCallIssue]
            mean = x.double() - dt * (v + squared / (2 * t) * (x.double() + (1 - t) * v))
            return torch.distributions.Normal(mean, math.sqrt(squared * dt))

        trained = gaussian()
        model.base.unet.disable_adapters()
        base = gaussian()
        model.base.unet.enable_adapters()
        log_prob = trained.log_prob(runs.latents[:, k + 1].double()).flatten(1).sum(1)
        kl = torch.distributions.kl_divergence(trained, base).flatten(1).sum(1)
        torch.testing.assert_close(runs.log_prob[:, k], log_prob, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(runs.kl[:, k], kl, rtol=1e-3, atol=1e-5)


def test_a_rollout_without_noise_is_the_video_of_diffusers_pipeline(folders: dict[str, Path]) -> None:
    base = load_base(BaseConfig(path=str(folders["wan"]), resolution=16, frames=5), CPU, allow_download=False)
    model = DiffusersModel(base, LORA, 0)
    draws = torch.randn(2, 5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = model.policy_steps(4, ETA, [])
    ours = collect(model, steps, model.encode_prompts(PROMPTS), draws, 4.0, measure_kl=False).images
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folders["wan"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    call = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "pt", "guidance_scale": 4.0}
    wanted = pipeline(PROMPTS, latents=draws[:, 0], num_frames=5, **call).frames
    assert ours.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=2e-4)


def test_the_adapter_file_does_not_depend_on_the_frames(folders: dict[str, Path]) -> None:
    """Other programs read it as they read the file of images (`test_flow_bases`)."""
    assert model_of(folders["wan"], 5).export({}) == model_of(folders["wan"], 1).export({})


def test_a_videos_score_is_the_mean_over_its_frames_with_gradient() -> None:
    seen: list[str] = []

    def first_letter_times_red(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen[:] = prompts
        return images[:, 0].mean((1, 2)) * torch.tensor([float(len(text)) for text in prompts])

    videos = torch.rand(2, 5, 3, 4, 4, requires_grad=True)
    scores = score({"red": first_letter_times_red}, videos, ["a", "bbb"], gradient=True)["red"]
    assert seen == ["a"] * 5 + ["bbb"] * 5
    wanted = videos.detach()[:, :, 0].mean((1, 2, 3)).double() * torch.tensor([1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(scores.detach(), wanted, rtol=1e-6, atol=1e-7)
    scores.sum().backward()
    assert videos.grad is not None
    torch.testing.assert_close(videos.grad[1, :, 0], torch.full((5, 4, 4), 3 / (5 * 16)))


def test_a_film_strip_shows_the_first_and_the_last_frame() -> None:
    videos = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, 3, 2, 2) / 10
    strips = film_strips(videos, most=3)
    assert strips.shape == (2, 3, 2, 6)
    torch.testing.assert_close(strips[0, 0, 0, ::2], torch.tensor([0.0, 0.4, 0.8]))
    assert film_strips(videos[:, :2]).shape == (2, 3, 2, 4)


@pytest.mark.parametrize("name", ["dpok", "nft", "rwr", "draft"])
def test_algorithms_train_on_videos(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run",
        name,
        sampling={"steps": 2, "samples": 4, "batch": 4, "eta": ETA},
        algorithm={"buffer": 8, "updates": 3, "group": 2},
        adapter={"rank": 2, "alpha": 2.0, "targets": ["to_v"]},
        base={"resolution": 16, "frames": 5},
        value={"updates": 1, "batch": 2, "hidden": 8},
        run={"iterations": 1, "watch_every": 1, "watch_samples": 2},
    )
    trainer = tiny_trainer(folders["wan"], config)
    trainer.run()
    assert math.isfinite(trainer.state.history[0]["reward"])
    assert any(float(v.detach().abs().max()) > 0 for k, v in trainer.context.model.trainable().items() if "lora_B" in k)
    assert list((tmp_path / "run" / "pictures").glob("*.png"))


def test_frames_that_a_base_cannot_make_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ValueError, match=r"base.frames is 5, but '.*' is Stable Diffusion 3 and 3.5, which makes images"
    ):
        load_base(BaseConfig(path=str(folders["sd3"]), frames=5), CPU, allow_download=False)
    with pytest.raises(ValueError, match="1 more than a multiple of 4 for .*: take 5 or 9"):
        load_base(BaseConfig(path=str(folders["wan"]), resolution=16, frames=8), CPU, allow_download=False)
    with pytest.raises(ValueError, match="a function of your own, which decides the frames itself"):
        load_base(BaseConfig(path="some.module:base", frames=5), CPU, allow_download=False)
