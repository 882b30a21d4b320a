"""``diffusion-blend bake``: diffusers loads the file itself, and makes the picture of its own weighted adapters."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusion_blend import command
from diffusion_blend.blending.layers import layer_shape
from diffusion_blend.pipelines.baking import bake_files, skeleton
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from tiny_transformers import sd3_prompt, tiny_sd3

TARGETS = ("to_q", "to_v", "proj_in", "conv1", "attn.to_k")
KINDS = ("sd", "sdxl", "sd3")


def make(kind: str, path: Path) -> Any:
    """Make a tiny pipeline, and its base in a folder."""
    if kind == "sd3":
        pipe: Any = tiny_sd3()
        pipe.save_pretrained(path)
    else:
        save = save_tiny_sd if kind == "sd" else save_tiny_sdxl
        pipe = DiffusionPipeline.from_pretrained(save(path), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Base:
    """A tiny base in a folder, and three LoRA files for it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.path = folder / "base"
        self.pipe = make(kind, self.path)
        self.network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        self.files = [self.write(name, seed) for seed, name in enumerate("abc")]

    def write(self, name: str, seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        layers = [(name, self.network) for name, _ in self.network.named_modules() if name.endswith(TARGETS)]
        if self.kind != "sd3":
            names = [name for name, _ in self.pipe.text_encoder.named_modules()]
            layers.append((next(name for name in names if name.endswith("layers.0.mlp.fc1")), self.pipe.text_encoder))
        for layer, network in layers:
            out, taken = layer_shape(network, layer)
            down = torch.randn((2 + seed, *taken), generator=generator) * 0.3
            up = torch.randn((out, 2 + seed, *[1] * (len(taken) - 1)), generator=generator) * 0.3
            prefix = "lora_unet_" if network is self.network else f"lora_te{'1' if self.kind == 'sdxl' else ''}_"
            if self.kind == "sd3":
                tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
            else:
                known = layer if network is self.network else f"text_model.{layer.removeprefix('text_model.')}"
                key = prefix + known.replace(".", "_")
                tensors |= {
                    f"{key}.lora_down.weight": down,
                    f"{key}.lora_up.weight": up,
                    f"{key}.alpha": torch.tensor(1.5),
                }
        save_file(tensors, self.folder / f"{name}.safetensors")
        return str(self.folder / f"{name}.safetensors")

    def picture(self, weights: dict[str, float]) -> torch.Tensor:
        """What diffusers makes with files that it loads itself."""
        for i, file in enumerate(weights):
            self.pipe.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=f"lora{i}")
        if weights:
            self.pipe.set_adapters([f"lora{i}" for i in range(len(weights))], list(weights.values()))
        given = sd3_prompt() if self.kind == "sd3" else {"prompt": "a red cat", "height": 8, "width": 8}
        try:
            generator = torch.Generator().manual_seed(0)
            return self.pipe(**given, num_inference_steps=2, output_type="latent", generator=generator).images
        finally:
            if weights:
                self.pipe.unload_lora_weights()


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.set_num_threads(1)
    return Base(request.param, tmp_path_factory.mktemp(request.param))


def bake(base: Base, output: Path, *words: str) -> int:
    given = ["--base", str(base.path), "--adapters", *base.files, "--output", str(output), *words]
    return command.main(["bake", *given])


def test_diffusers_makes_the_picture_of_its_own_weighted_adapters(base: Base, tmp_path: Path) -> None:
    """Text encoders included: the weights .2, .3, .5 at KL scale 1.5."""
    output = tmp_path / "baked.safetensors"
    assert bake(base, output, "--weights", "2", "3", "5", "--kl_scale", "1.5") == 0
    baked = base.picture({str(output): 1.0})
    expected = base.picture(dict(zip(base.files, (0.3, 0.45, 0.75), strict=True)))
    torch.testing.assert_close(baked, expected, rtol=1e-4, atol=1e-4)
    assert float((baked - base.picture({})).abs().max()) > 1e-2


def test_a_smaller_rank_prints_the_error_of_each_layer_and_in_all(base: Base, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "small.safetensors"
    assert bake(base, output, "--weights", "1", "1", "1", "--rank", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    exact = bake_files(str(base.path), base.files, [1, 1, 1])
    layers = {key.rpartition(".lora_")[0] for key in exact.tensors if ".lora_" in key}
    assert len(lines) == len(layers) + 1
    with safe_open(output, framework="pt") as file:
        small = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        made = json.loads(file.metadata()["diffusion_blend.baked"])
    missing, size = (
        sum(float(part) for part in parts)
        for parts in zip(*(_errors(exact.tensors, small, layer) for layer in layers), strict=True)
    )
    assert f"the error left is {(missing / size) ** 0.5:.2%} of the update" in lines[-1]
    assert [entry["file"] for entry in made["adapters"]] == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert made["rank"] == 3


def _errors(whole: Any, small: Any, layer: str) -> tuple[float, float]:
    first, second = (_product(tensors, layer) for tensors in (whole, small))
    return float((first - second).square().sum()), float(first.square().sum())


def _product(tensors: Any, layer: str) -> torch.Tensor:
    names = ("lora_up", "lora_down") if f"{layer}.lora_up.weight" in tensors else ("lora_B", "lora_A")
    up, down = (tensors[f"{layer}.{name}.weight"].double().flatten(1) for name in names)
    return up @ down


def test_the_skeleton_has_the_shapes_of_the_base_and_no_weights(base: Base) -> None:
    network = skeleton(str(base.path))[0]
    shapes = {name: tensor.shape for name, tensor in network.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in base.network.named_parameters()}
    assert all(tensor.is_meta for tensor in network.parameters())


def test_refusals_say_the_value(base: Base, tmp_path: Path, capsys: Any) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    cases = {
        "exists: choose another name": bake(base, taken, "--weights", "1", "1", "1"),
        "must end in .safetensors": bake(base, tmp_path / "out.pt", "--weights", "1", "1", "1"),
        "2 weights for 3 adapters": bake(base, tmp_path / "o.safetensors", "--weights", "1", "1"),
        "kl_scale is 0": bake(base, tmp_path / "o.safetensors", "--weights", "1", "1", "1", "--kl_scale", "0"),
    }
    said = capsys.readouterr().err
    assert all(status == 1 for status in cases.values())
    assert all(words in said for words in cases)
    assert taken.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="cannot read a diffusers folder"):
        skeleton(str(tmp_path))


def test_other_kinds_of_the_text_encoder_are_left_out_and_said(tmp_path: Path, caplog: Any) -> None:
    base = Base("sd", tmp_path)
    with safe_open(base.files[0], framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"lora_te_text_model_x.diff": torch.zeros(2)}, base.files[0])
    with caplog.at_level(logging.WARNING, logger="diffusion_blend"):
        bake_files(str(base.path), base.files[:1], [1.0])
    assert "1 text-encoder parts are not plain LoRA" in caplog.text
