"""A single .safetensors checkpoint of the original Stable Diffusion layout is the base it was made from."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.config import BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import Base
from safetensors import safe_open
from single_file import copy_without_weights, save_as_single_file

CPU = torch.device("cpu")
PROMPTS = ["a red cube", "2 green balls"]


@pytest.fixture(scope="module")
def checkpoint(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single-file") / "tiny.safetensors"
    save_as_single_file(tiny_sd, path)
    return path


@pytest.fixture(scope="module")
def bases(tiny_sd: Path, checkpoint: Path) -> tuple[Base, Base]:
    """The folder's base, and that of the checkpoint with a configuration folder that holds no weights."""
    config = copy_without_weights(tiny_sd, checkpoint.parent / "config")
    assert not list(config.rglob("*.safetensors"))
    from_folder = load_base(BaseConfig(path=str(tiny_sd)), CPU, allow_download=False)
    single = BaseConfig(path=str(checkpoint), config=str(config))
    return from_folder, load_base(single, CPU, allow_download=False)


def test_the_checkpoint_has_the_original_layout(checkpoint: Path) -> None:
    # Names read off the published SD 1.x checkpoints: without them the tests below could pass on a diffusers layout.
    with safe_open(checkpoint, framework="pt") as file:
        keys = set(file.keys())
    assert {key.split(".")[0] for key in keys} == {"model", "cond_stage_model", "first_stage_model"}
    assert keys >= {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.weight",
        "model.diffusion_model.output_blocks.0.0.skip_connection.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
    }


def test_prompt_embeddings_equal_the_folders(bases: tuple[Base, Base]) -> None:
    expected, got = (base.encode(PROMPTS) for base in bases)
    for branch in ("prompt", "empty"):
        one, other = (getattr(conditioning, branch)["encoder_hidden_states"] for conditioning in (expected, got))
        assert one.shape == (2, 16, 32)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    difference = expected.prompt["encoder_hidden_states"] - expected.empty["encoder_hidden_states"]
    assert difference.abs().max() > 0.1  # the encoder does read the prompt


def test_unet_output_equals_the_folders(bases: tuple[Base, Base]) -> None:
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([17, 803])
    words = bases[0].encode(PROMPTS).prompt
    with torch.no_grad():
        expected, got = (base.unet(latents, times, **words).sample for base in bases)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_decoded_pictures_equal_the_folders(bases: tuple[Base, Base]) -> None:
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, got = (base.decode(latents) for base in bases)
    assert expected.shape == (2, 3, 4, 4)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_settings_equal_the_folders(bases: tuple[Base, Base]) -> None:
    expected, got = bases
    assert (got.architecture, got.latent_shape, got.resolution) == (
        expected.architecture,
        expected.latent_shape,
        expected.resolution,
    )
    assert got.scheduler["prediction_type"] == "v_prediction"
    assert _public(got.scheduler) == _public(expected.scheduler)


def _public(scheduler: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scheduler.items() if not key.startswith("_")}


@pytest.mark.parametrize("config", ["", "nobody/nothing"])
def test_nothing_is_fetched_without_leave(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    # Not offline by setting and nothing cached: only allow_download=False stands between the loader and the hub.
    asked: list[str] = []

    def no_network(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError(f"the test looked up {host}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ValueError, match=r"(?s)cannot build a pipeline from .*--base\.config.*--allow_download true"):
        load_base(BaseConfig(path=str(checkpoint), config=config), CPU, allow_download=False)
    assert asked == []
    with pytest.raises(ValueError, match="cannot build a pipeline"):  # the trap works: with leave, the hub is asked
        load_base(BaseConfig(path=str(checkpoint), config=config), CPU, allow_download=True)
    assert asked


def test_a_cached_configuration_needs_no_leave(
    checkpoint: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's cache layout: refs/main names the snapshot.
    cached = tmp_path / "models--nobody--nothing"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    copy_without_weights(tiny_sd, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = load_base(BaseConfig(path=str(checkpoint), config="nobody/nothing"), CPU, allow_download=False)
    assert base.latent_shape == (4, 2, 2)
