"""Adapter files: ComfyUI's reader, diffusers' reader and peft agree on what they change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from comfy_hosts import HOW_TO_GET_ONE, find_hosts
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.export import adapter_metadata
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import Base, DiffusersModel
from diffusion_blend.training.models.protocol import Conditioning
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

SUPPORT = Path(__file__).parents[1] / "support"


def shallow_sd15() -> Base:
    """SD 1.5's true widths, two levels of one block: the host recognises it as SD 1.5."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320, 320),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    )

    def encode(prompts: object) -> Conditioning:
        raise AssertionError("not needed")

    def decode(latents: Tensor) -> Tensor:
        raise AssertionError("not needed")

    return Base("shallow", "sd_v1", unet, {}, (4, 8, 8), (64, 64), encode, decode)


def disturb(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def peft_changes(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """What peft itself adds to each weight, by its own account."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def hosts() -> list[Path]:
    return find_hosts()


@pytest.mark.host
def test_comfyui_reads_the_file_as_peft_does(tmp_path: Path) -> None:
    found = hosts()
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    expected = {}
    for alpha in (4.0, 1.0):
        model = DiffusersModel(shallow_sd15(), AdapterConfig(rank=4, alpha=alpha), 0)
        disturb(model.trainable())
        file = tmp_path / f"alpha{alpha}.safetensors"
        file.write_bytes(model.export({}))
        expected[file] = peft_changes(model.base.unet)
    for host in found:
        out = tmp_path / host.name
        out.mkdir()
        # A process of its own: the host's folders must not leak into the trainer's sys.path.
        script = [sys.executable, str(SUPPORT / "read_adapter_in_host.py"), str(host), str(out)]
        done = subprocess.run([*script, *map(str, expected)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        for file, by_peft in expected.items():
            changes = load_file(out / file.name)
            assert set(changes) == set(by_peft)
            for name, change in changes.items():
                torch.testing.assert_close(change, by_peft[name], rtol=1e-5, atol=1e-7)
            assert len(by_peft) == 7 * 8  # seven transformer blocks, eight projections each


def test_diffusers_reads_the_file_as_peft_does(tiny_sd: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd)), torch.device("cpu"), allow_download=False)
    model = DiffusersModel(base, AdapterConfig(rank=2, alpha=3.0), 0)
    disturb(model.trainable())
    expected = peft_changes(base.unet)
    (tmp_path / "adapter.safetensors").write_bytes(model.export({}))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    assert isinstance(pipeline, StableDiffusionPipeline)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = pipeline.unet.state_dict()
    for name, value in before.items():
        change = expected.get(name.removesuffix(".weight"))
        wanted = value if change is None else value + change
        torch.testing.assert_close(after[name], wanted, rtol=1e-5, atol=1e-6)


def test_keys_alpha_and_metadata(tiny_sd: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd)), torch.device("cpu"), allow_download=False)
    model = DiffusersModel(base, AdapterConfig(rank=2, alpha=3.0), 0)
    header = adapter_metadata(
        title="redder",
        architecture="sd_v1",
        base_model="somewhere/sd",
        rank=2,
        alpha=3.0,
        resolution=(512, 512),
        prediction_type="epsilon",
        training={"reward": "redness", "kl_weight": 0.25, "config": {"run": {"seed": 3}}},
    )
    content = model.export(header)
    tensors = load(content)
    layers = {key.split(".")[0] for key in tensors}
    assert all(layer.startswith("lora_unet_") for layer in layers)
    expected = {f"{layer}.{end}" for layer in layers for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert set(tensors) == expected
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {3.0}
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        read = file.metadata()
    assert read["ss_base_model_version"] == "sd_v1"
    assert read["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert read["modelspec.resolution"] == "512x512"
    assert json.loads(read["diffusion_blend.kl_weight"]) == 0.25
    assert json.loads(read["diffusion_blend.config"]) == {"run": {"seed": 3}}
    assert read["diffusion_blend.reward"] == "redness"


def test_the_comparison_with_peft_can_fail(tiny_sd: Path, tmp_path: Path) -> None:
    """The same file with a wrong alpha changes the model differently."""
    base = load_base(BaseConfig(path=str(tiny_sd)), torch.device("cpu"), allow_download=False)
    model = DiffusersModel(base, AdapterConfig(rank=2, alpha=2.0), 0)
    disturb(model.trainable())
    tensors = load(model.export({}))
    wrong = {key: value * 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(wrong, tmp_path / "adapter.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    assert isinstance(pipeline, StableDiffusionPipeline)
    name = next(iter(peft_changes(base.unet)))
    before = pipeline.unet.state_dict()[f"{name}.weight"].clone()
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    change = pipeline.unet.state_dict()[f"{name}.weight"] - before
    torch.testing.assert_close(change, 2 * peft_changes(base.unet)[name], rtol=1e-4, atol=1e-6)


def test_no_folder_of_the_maker_gets_into_the_file() -> None:
    header = adapter_metadata(
        title="a",
        architecture="sd_v1",
        base_model="/home/someone/models/base",
        rank=4,
        alpha=4.0,
        resolution=(512, 512),
        prediction_type="epsilon",
        training={
            "prompts": "C:\\Users\\someone\\prompts.txt",
            "config": {"base": {"path": "owner/name"}, "folders": ["/home/someone/x", "relative/x"], "steps": 3},
        },
    )
    assert header["diffusion_blend.base_model"] == "base"
    assert header["diffusion_blend.prompts"] == "prompts.txt"
    recorded = json.loads(header["diffusion_blend.config"])
    assert recorded == {"base": {"path": "owner/name"}, "folders": ["x", "relative/x"], "steps": 3}
