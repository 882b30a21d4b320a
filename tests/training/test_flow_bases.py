"""Flow-matching bases: rollouts, adapter files and training on a tiny pipeline of each family, against diffusers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from comfy_hosts import HOW_TO_GET_ONE, find_hosts
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusion_blend.training.config import AUTHORS_TARGETS, AdapterConfig, BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.flux import pack, unpack
from diffusion_blend.training.prompt_table import PromptTable
from diffusion_blend.training.rollout import collect
from read_transformers_in_host import NETWORKS
from safetensors.torch import load_file
from tiny_transformers import FOLDERS, save_tiny_flux
from torch import Tensor
from training_runs import settings, tiny_trainer

CPU = torch.device("cpu")
SUPPORT = Path(__file__).parents[1] / "support"
PROMPTS = ["a red cat", "a dog"]
FAMILIES = pytest.mark.parametrize("family", list(FOLDERS))
EVERY_LAYER_OF_WAN = [*AUTHORS_TARGETS, "net.0.proj", "net.2", "proj_out", "linear_1", "linear_2", "time_proj"]


def model_of(folder: Path, **adapter: Any) -> DiffusersModel:
    base = load_base(BaseConfig(path=str(folder), resolution=16), CPU, allow_download=False)
    return DiffusersModel(base, AdapterConfig(**adapter), 0)


def pipeline_of(folder: Path) -> Any:
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if folder.name == "sd3" else {}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def disturb(model: DiffusersModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def theirs(family: str, folder: Path, latents: Tensor, scale: float) -> Tensor:
    """The pictures of diffusers' own pipeline."""
    pipeline = pipeline_of(folder)
    call: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "pt"}
    if family == "z_image":
        return pipeline(PROMPTS, guidance_scale=scale - 1, latents=latents, **call).images
    if family == "qwen_image":
        return pipeline(PROMPTS, true_cfg_scale=scale, latents=pack(latents), **call).images
    if family == "flux":
        return pipeline(PROMPTS, guidance_scale=3.5, latents=pack(latents), **call).images
    if family == "wan":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return pipeline(PROMPTS, guidance_scale=scale, latents=latents[:, :, None], num_frames=1, **call).frames[:, 0]
    return pipeline(prompt=PROMPTS, guidance_scale=scale, latents=latents, **call).images


@pytest.mark.parametrize(
    ("family", "scale"),
    [(family, 1.0) for family in FOLDERS] + [(family, 4.0) for family in ("sd3", "flux2_klein", "z_image", "wan")],
)
def test_a_rollout_without_noise_is_diffusers_pipeline(family: str, scale: float, folders: dict[str, Path]) -> None:
    model = model_of(folders[family])
    draws = torch.randn(2, 5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = model.policy_steps(4, 0.7, [])
    ours = collect(model, steps, model.encode_prompts(PROMPTS), draws, scale, measure_kl=False).images
    wanted = theirs(family, folders[family], draws[:, 0], scale)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=2e-4)
    assert float(ours.std()) > 0.01


def test_a_flux_without_a_dynamic_shift_takes_its_pipelines_times(tmp_path: Path) -> None:
    """Flux.1-schnell: the times are 1, 3/4, 1/2, 1/4."""
    folder = save_tiny_flux(tmp_path / "flux", use_dynamic_shifting=False, shift=1.0)
    model = model_of(folder)
    torch.testing.assert_close(model.policy_steps(4, 0.7).timesteps, torch.tensor([1000.0, 750.0, 500.0, 250.0]))


@FAMILIES
def test_prompts_of_several_lengths_do_not_change_each_other(family: str, folders: dict[str, Path]) -> None:
    model = model_of(folders[family])
    prompts = ["a cat", "a long prompt of many words", "b"]
    table = PromptTable(model, prompts)
    together = table.conditioning(torch.tensor([0, 1, 2]))
    latents, times = torch.randn(3, *model.latent_shape), torch.tensor([900.0, 500.0, 100.0])
    batch = model.predict(latents, times, together.prompt, base=True)
    for i, prompt in enumerate(prompts):
        alone = model.encode_prompts([prompt])
        found = model.predict(latents[i : i + 1], times[i : i + 1], alone.prompt, base=True)
        torch.testing.assert_close(batch[i : i + 1], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "targets"),
    [(family, list(AUTHORS_TARGETS)) for family in FOLDERS] + [("wan", EVERY_LAYER_OF_WAN)],
)
def test_an_adapter_file_changes_diffusers_pipeline_as_peft_changes_the_network(
    family: str, targets: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_of(folders[family], rank=2, alpha=6.0, targets=targets)
    disturb(model)
    (tmp_path / "adapter.safetensors").write_bytes(model.export({"format": "pt"}))
    conditioning = model.encode_prompts(PROMPTS).prompt
    latents, times = torch.randn(2, *model.latent_shape), torch.tensor([100.0, 900.0])
    plain = model.predict(latents, times, conditioning, base=True)
    pipeline = pipeline_of(folders[family])
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    wanted = model.base.call(pipeline.transformer, latents, times, conditioning)
    ours = model.predict(latents, times, conditioning, base=False)
    torch.testing.assert_close(wanted, ours, rtol=1e-4, atol=1e-5)
    assert float((plain - ours).detach().abs().max()) > 1e-3


WAN_NAMES = {"attn1.to_": "self_attn.", "attn2.to_": "cross_attn.", "out.0": "o"}


def name_in_file(family: str, layer: str) -> str:
    """The name that a family's adapter file has for a layer of diffusers' network."""
    if family != "wan":
        return f"transformer.{layer}"
    for ours, native in WAN_NAMES.items():
        layer = layer.replace(ours, native)
    return f"diffusion_model.{layer}"


@pytest.mark.host
def test_comfyui_reads_the_files_as_peft_does(folders: dict[str, Path], tmp_path: Path) -> None:
    found = find_hosts()
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    expected: dict[str, dict[str, Tensor]] = {}
    for family in NETWORKS:
        model = model_of(folders[family], rank=2, alpha=6.0)
        disturb(model)
        (tmp_path / f"{family}.safetensors").write_bytes(model.export({}))
        expected[family] = {
            name_in_file(family, name): module.get_delta_weight("default").detach()
            for name, module in model.base.unet.named_modules()
            if hasattr(module, "get_delta_weight")
        }
    seen = set()
    for host in found:
        script = [sys.executable, str(SUPPORT / "read_transformers_in_host.py"), str(host), str(tmp_path)]
        done = subprocess.run(script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        for file in tmp_path.glob("*.changes.safetensors"):
            family = file.name.partition(".")[0]
            changes = load_file(file)
            assert set(changes) == set(expected[family])
            for name, change in changes.items():
                torch.testing.assert_close(change, expected[family][name], rtol=1e-5, atol=1e-7)
            file.unlink()
            seen.add(family)
    assert seen == set(NETWORKS)


@pytest.mark.parametrize(
    ("family", "name"),
    [("sd3", name) for name in ("dpok", "grpo", "nft", "draft")]
    + [("flux2_klein", "nft"), ("qwen_image", "grpo"), ("z_image", "dpok"), ("wan", "grpo")],
)
def test_every_algorithm_and_family_trains(family: str, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run",
        name,
        sampling={"steps": 4, "samples": 8, "batch": 4, "eta": 0.7, "noisy_steps": "auto"},
        algorithm={"buffer": 64, "updates": 2, "group": 4, "kl_weight": 0.01},
        adapter={"rank": 2, "alpha": 2.0, "targets": ["to_q", "to_v"]},
        base={"resolution": 16},
        run={"iterations": 2},
    )
    trainer = tiny_trainer(folders[family], config)
    trainer.run()
    assert all(math.isfinite(row["reward"]) for row in trainer.state.history)
    trained = {key: value for key, value in trainer.context.model.trainable().items() if "lora_B" in key}
    assert any(float(value.detach().abs().max()) > 0 for value in trained.values())


def test_packing_is_undone() -> None:
    latents = torch.randn(2, 4, 6, 8)
    assert torch.equal(unpack(pack(latents), 4, 6, 8), latents)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
