"""Sweeps on flow-matching bases, through the trainer's families."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.pipelines import BlendedPipeline
from diffusion_blend.training.config import BaseConfig
from safetensors.torch import load_file
from sweeps import PROMPTS, latents, settings, sweep, write_adapter
from tiny_transformers import save_tiny_sd3, save_tiny_z_image

TARGETS = ["to_q", "to_v"]
MAKERS = {"sd3": save_tiny_sd3, "z_image": save_tiny_z_image}


@pytest.fixture(scope="module", params=list(MAKERS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A base's folder and two adapter files for it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = MAKERS[request.param](folder / request.param)
    lora: dict[str, Any] = {"targets": TARGETS}
    return base, {name: write_adapter(folder, base, name, seed, **lora) for seed, name in enumerate("ab")}


def flow_settings(output: Path, world: tuple[Path, dict[str, Path]], **over: Any) -> Any:
    base, adapters = world
    config = settings(output, base, adapters, steps=4, **over)
    return replace(config, base=BaseConfig(path=str(base), resolution=16))


def test_every_method_runs_on_a_flow(world: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    methods = ["base", "blend", "stochastic", "soup", "early", "msdda", "code"]
    config = flow_settings(tmp_path / "sweep", world, methods=methods, measure_kl=True, save_images=1, eta=0.7)
    sweep(config).run()
    rows = list(csv.DictReader((tmp_path / "sweep" / "samples.csv").open()))
    assert {row["method"] for row in rows} == set(methods)
    kl = {row["method"]: float(row["kl"]) for row in rows if row["kl"]}
    assert kl["base"] == 0 < kl["blend"]


def test_without_noise_a_sweep_is_the_blended_pipeline(world: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """eta 0 is the pipeline's own Euler sampler, so both make the same latents from the same noise."""
    import diffusers

    base, adapters = world
    config = flow_settings(tmp_path / "sweep", world, eta=0.0, weights=[[0.3, 0.7]], guidance_scale=3.0)
    ready = sweep(config)
    found = latents(ready, 0, [0, 1, 2])
    noise = ready._chunk(range(3)).noise[:, 0]
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if base.name == "sd3" else {}
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(base, **absent)
    pipe.set_progress_bar_config(disable=True)
    scale = 2.0 if base.name == "z_image" else 3.0
    # Tensors have no KL weights, by which the pipeline's weights would count; the sweep counts them in the rewards' units.
    wanted = BlendedPipeline(pipe, {name: load_file(file) for name, file in adapters.items()})(
        prompt=list(PROMPTS),
        weights=[0.3, 0.7],
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=scale,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
