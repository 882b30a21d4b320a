"""``diffusion-blend bake``: diffusers loads the file itself, and makes the picture of its own weighted adapters."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from diffusion_blend import command
from diffusion_blend.blending.layers import layer_shape
from diffusion_blend.pipelines import BlendedPipeline
from diffusion_blend.pipelines.baking import bake_files, skeleton
from lora_bases import Base
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import save_file

KINDS = ("sd", "sdxl", "sd3")


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


def test_a_bake_that_fails_leaves_no_folder_and_one_that_works_makes_it(
    base: Base, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "new" / "deep" / "o.safetensors"
    with safe_open(base.files[0], framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = next(key for key in tensors if key.endswith("weight"))
    save_file({**tensors, key: tensors[key] * torch.nan}, tmp_path / "nan.safetensors")
    words = ["--base", str(base.path), "--output", str(output), "--weights", "1", "1", "--adapters", base.files[1]]
    for bad, message in (("nan", "holds NaN or infinite numbers"), ("missing", "cannot read")):
        assert command.main(["bake", *words, str(tmp_path / f"{bad}.safetensors")]) == 1
        assert f"{bad}.safetensors" in (said := capsys.readouterr().err) and message in said
        assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    assert bake(base, tmp_path / "file" / "o.safetensors", "--weights", "1", "1", "1") == 1
    assert "is a file and not a folder" in capsys.readouterr().err
    assert command.main(["bake", *words, base.files[0]]) == 0
    assert output.exists()


@pytest.mark.parametrize("kind", ["loha", "dora"])
def test_other_kinds_of_adapter_are_summed_exactly(kind: str, tmp_path: Path) -> None:
    """The soup of the package's own pipeline is the truth; DoRA needs the base's weights, which are then read."""
    base = Base("sd", tmp_path)
    name = next(name for name, _ in base.network.named_modules() if name.endswith("attn1.to_q"))
    out, (taken,) = layer_shape(base.network, name)
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.4

    key = "lora_unet_" + name.replace(".", "_")
    factors = {f"hada_w{i}_{part}": random(*((out, 2) if part == "a" else (2, taken))) for i in (1, 2) for part in "ab"}
    if kind == "dora":
        factors = {
            "lora_up.weight": random(out, 2),
            "lora_down.weight": random(2, taken),
            "dora_scale": random(out, 1).abs() + 1,
        }
    save_file({f"{key}.{part}": tensor for part, tensor in factors.items()}, tmp_path / "other.safetensors")
    files = [str(tmp_path / "other.safetensors"), base.files[0]]
    (tmp_path / "baked.safetensors").write_bytes(bake_files(str(base.path), files, [0.6, 0.4]).content())
    with safe_open(base.files[0], framework="pt") as file:
        plain = {key: file.get_tensor(key) for key in file.keys() if key.startswith("lora_unet")}  # noqa: SIM118
    with safe_open(tmp_path / "baked.safetensors", framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys() if key.startswith("lora_unet")}  # noqa: SIM118
    save_file(found, tmp_path / "baked.safetensors")
    given = {"prompt": "a cat", "height": 8, "width": 8, "num_inference_steps": 2, "output_type": "latent"}
    soup = BlendedPipeline(base.pipe, {"other": files[0], "plain": plain})
    expected = soup(**given, weights=[0.6, 0.4], method="soup", generator=torch.Generator().manual_seed(0)).images
    base.pipe.load_lora_weights(str(tmp_path), weight_name="baked.safetensors")
    baked = base.pipe(**given, generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(baked, expected, rtol=1e-4, atol=1e-4)


def test_other_kinds_of_the_text_encoder_are_left_out_and_said(tmp_path: Path, caplog: Any) -> None:
    base = Base("sd", tmp_path)
    with safe_open(base.files[0], framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"lora_te_text_model_x.diff": torch.zeros(2)}, base.files[0])
    with caplog.at_level(logging.WARNING, logger="diffusion_blend"):
        bake_files(str(base.path), base.files[:1], [1.0])
    assert "1 text-encoder parts are not plain LoRA" in caplog.text


def test_files_that_diffusers_saved_are_baked_with_the_factors_of_their_headers(tmp_path: Path, caplog: Any) -> None:
    """The network's and the text encoder's alpha differ. A folder of peft is baked, too."""
    base = Base("sd", tmp_path)
    torch.manual_seed(3)
    configs = {
        "unet": LoraConfig(r=2, lora_alpha=1, target_modules=["to_q"], init_lora_weights=False),
        "text_encoder": LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "out_proj"], init_lora_weights=False),
    }
    parts: dict[str, Any] = {}
    for part, config in configs.items():
        network = inject_adapter_in_model(config, copy.deepcopy(getattr(base.pipe, part)))
        parts[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        parts[f"{part}_lora_adapter_metadata"] = config.to_dict()
    base.pipe.save_lora_weights(tmp_path / "saved", **parts)
    source, output = str(tmp_path / "saved" / "pytorch_lora_weights.safetensors"), tmp_path / "baked.safetensors"
    with caplog.at_level(logging.WARNING, logger="diffusion_blend"):
        output.write_bytes(bake_files(str(base.path), [source], [1.0]).content())
    assert "not blended" not in caplog.text
    wanted = base.picture({source: 1.0})
    torch.testing.assert_close(base.picture({str(output): 1.0}), wanted, rtol=1e-4, atol=1e-4)
    only = {key: value for key, value in parts.items() if key.startswith("unet")}
    base.pipe.save_lora_weights(tmp_path / "saved", **only)
    assert float((base.picture({source: 1.0}) - wanted).abs().max()) > 1e-3
    configs["unet"].save_pretrained(tmp_path / "peft")
    save_file(parts["unet_lora_layers"], tmp_path / "peft" / "adapter_model.safetensors")
    folder = bake_files(str(base.path), [str(tmp_path / "peft")], [1.0])
    assert len(folder.layers) == sum(name.endswith("to_q") for name, _ in base.network.named_modules())
