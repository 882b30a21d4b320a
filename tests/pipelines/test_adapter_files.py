"""One reader for kohya's, diffusers' and peft's files: every layout of the same adapter gives the same update."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusion_blend.blending.updates import Difference
from diffusion_blend.pipelines import blend
from diffusion_blend.pipelines.adapter_files import fit_adapter, open_adapter, read_adapter
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_pipelines import save_tiny_sd
from tiny_transformers import tiny_flux


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe: Any = DiffusionPipeline.from_pretrained(
        save_tiny_sd(tmp_path_factory.mktemp("sd") / "base"), local_files_only=True
    )
    return pipe.unet


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"


def factors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {name: (torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)) for name in (LAYER, OUT)}


def layouts() -> dict[str, dict[str, torch.Tensor]]:
    kohya, diffusers, before, peft = {}, {}, {}, {}
    for name, (down, up) in factors().items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(3.0)}
        diffusers |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up * 1.5}
        module, _, last = name.removesuffix(".0").rpartition(".")
        old = f"unet.{module}.processor.{last}_lora"
        before |= {f"{old}.down.weight": down, f"{old}.up.weight": up * 1.5}
        peft |= {f"base_model.model.{name}.lora_A.default.weight": down}
        peft |= {f"base_model.model.{name}.lora_B.default.weight": up * 1.5}
    return {"kohya": kohya, "diffusers": diffusers, "before peft": before, "peft": peft}


@pytest.mark.parametrize("layout", layouts())
def test_every_layout_gives_the_same_update(unet: Any, layout: str, tmp_path: Path) -> None:
    save_file(layouts()[layout], tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors"), layouts()[layout]):
        update = read_adapter("a", source, unet).update
        assert set(update) == {LAYER, OUT}
        for name, (down, up) in factors().items():
            torch.testing.assert_close(update[name][0].up @ update[name][0].down, 1.5 * up @ down)


@pytest.mark.parametrize("stabilised", [False, True])
def test_a_peft_model_its_folder_and_its_layers_agree(unet: Any, tmp_path: Path, stabilised: bool) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v"],
        use_rslora=stabilised,
        init_lora_weights=False,
        rank_pattern={"to_v": 2},
        alpha_pattern={"to_v": 5},
    )
    model = get_peft_model(copy.deepcopy(unet), config)
    model.save_pretrained(str(tmp_path))
    expected = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for source in (model, tmp_path):
        update = read_adapter("a", source, unet).update
        assert set(update) == set(expected)
        for name, delta in expected.items():
            torch.testing.assert_close(update[name][0].up @ update[name][0].down, delta)


def test_flux_layers_of_kohyas_trainer_are_renamed(tmp_path: Path) -> None:
    network = tiny_flux().transformer
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=draw), torch.randn(96, 2, generator=draw)
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(1.0)}
    update = read_adapter("flux", tensors, network).update
    names = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    assert set(update) == set(names)
    whole = torch.cat([update[name][0].up @ update[name][0].down for name in names])
    torch.testing.assert_close(whole, 0.5 * up @ down)


def test_kinds_that_are_not_low_rank_are_named(unet: Any) -> None:
    plain = layouts()["diffusers"]
    for key, kind in (
        (f"unet.{LAYER}.oft_blocks", "OFT"),
        (f"unet.{LAYER}.diff", "full"),
        ("x", "unknown"),
    ):
        with pytest.raises(ValueError, match=kind):
            open_adapter("a", {**plain, key: torch.ones(1)})
    with pytest.raises(ValueError, match="no UNet weights and no transformer weights"):
        open_adapter("a", {"text_encoder.x.lora_A.weight": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="adapter 'a' is a int"):
        open_adapter("a", 3)
    half = {key: value for key, value in plain.items() if "lora_B" not in key}
    with pytest.raises(ValueError, match="no lora_up; the file is not whole"):
        fit_adapter(open_adapter("a", half), unet)


PEFT_KINDS = {
    "dora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_v", "conv1"], use_dora=True),
    "loha": lambda: LoHaConfig(r=3, alpha=5, target_modules=["to_q", "conv1"]),
    "loha of low rank": lambda: LoHaConfig(r=1, alpha=2, target_modules=["to_q"]),
    "lokr": lambda: LoKrConfig(r=2, alpha=3, target_modules=["to_q"], decompose_both=True, decompose_factor=4),
}


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_kinds_of_peft_change_the_network_as_peft_does(kind: str, unet: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(unet), PEFT_KINDS[kind]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "hada_", "lokr_")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(str(tmp_path))
    call = torch.randn(2, 4, 2, 2), torch.tensor([10, 700]), torch.randn(2, 5, 32)
    wanted, base = model(*call).sample, unet(*call).sample
    for source in (tmp_path, model):
        with blend(unet, {"a": source}, [1.0]) as network:
            torch.testing.assert_close(network(*call).sample, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unet(*call).sample, base)
    assert float((wanted - base).abs().max()) > 1e-2


def test_kinds_of_lycoris_are_its_own_forward_pass(unet: Any) -> None:
    lycoris = pytest.importorskip("lycoris")
    call = torch.randn(2, 4, 2, 2), torch.tensor([10, 700]), torch.randn(2, 5, 32)
    base = unet(*call).sample
    for settings in ({"algo": "loha"}, {"algo": "lokr", "factor": 4}, {"algo": "locon", "weight_decompose": True}):
        trained = copy.deepcopy(unet)
        lycoris.LycorisNetwork.apply_preset({"target_name": [".*attn1.to_q", ".*resnets.0.conv1"]})
        network = lycoris.create_lycoris(trained, 1.0, linear_dim=4, linear_alpha=2.0, **settings)
        network.apply_to()
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
        wanted = trained(*call).sample
        tensors = {key.replace("lycoris_", "lora_unet_"): value for key, value in network.state_dict().items()}
        with blend(unet, {"a": tensors}, [1.0]) as blended:
            torch.testing.assert_close(blended(*call).sample, wanted, rtol=1e-4, atol=1e-5)
        assert float((wanted - base).abs().max()) > 1e-3


def test_a_dora_scale_by_input_is_the_columns_norm(unet: Any) -> None:
    layer = LAYER.replace("attn1.to_q", "attn2.to_k")  # 32 inputs, 16 outputs
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=draw), torch.randn(16, 2, generator=draw)
    weight, scale = unet.get_submodule(layer).weight.detach(), torch.rand(1, 32, generator=draw) + 0.5
    flat = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.dora_scale": scale}
    total = weight + up @ down
    wanted = total * scale / total.norm(dim=0, keepdim=True) - weight
    (update,) = read_adapter("a", tensors, unet).update[layer]
    assert isinstance(update, Difference)
    torch.testing.assert_close(update.weight, wanted, rtol=1e-4, atol=1e-5)


def test_damaged_kinds_are_named(unet: Any) -> None:
    ranks = {**layouts()["kohya"], f"{KEY}.lora_up.weight": torch.ones(16, 3)}
    with pytest.raises(ValueError, match=rf"adapter 'a', layer '{LAYER}': up of shape \[16, 3\]"):
        read_adapter("a", ranks, unet)
    half = {f"unet.{LAYER}.hada_w1_a": torch.ones(16, 2), f"unet.{LAYER}.hada_w1_b": torch.ones(2, 16)}
    with pytest.raises(ValueError, match="no hada_w2_a"):
        read_adapter("a", half, unet)
    wrong = {f"unet.{LAYER}.lokr_w1": torch.ones(3, 3), f"unet.{LAYER}.lokr_w2": torch.ones(3, 3)}
    with pytest.raises(ValueError, match="does not fit this base in layer"):
        read_adapter("a", wrong, unet)
    both = {**half, f"unet.{LAYER}.hada_w2_a": torch.ones(16, 2), f"unet.{LAYER}.hada_w2_b": torch.ones(2, 16)}
    with pytest.raises(ValueError, match="a DoRA of LoHa or LoKr"):
        read_adapter("a", {**both, f"unet.{LAYER}.dora_scale": torch.ones(16, 1)}, unet)


KEY = f"lora_unet_{LAYER.replace('.', '_')}"
BAD_TENSORS: dict[str, tuple[str, torch.Tensor, str]] = {
    "NaN": (".lora_up.weight", torch.full((16, 2), torch.nan), "holds NaN or infinite numbers"),
    "infinity": (".lora_down.weight", torch.full((2, 16), torch.inf), "holds NaN or infinite numbers"),
    "NaN in 8 bits": (".lora_up.weight", torch.full((16, 2), torch.nan).to(torch.float8_e4m3fn), "holds NaN"),
    "alpha": (".alpha", torch.tensor(torch.nan), "holds NaN or infinite numbers"),
    "two alphas": (".alpha", torch.tensor([1.0, 2.0]), "holds 2 numbers, and an alpha is one"),
    "no rank": (".lora_down.weight", torch.zeros(0, 16), r"is empty, of shape \[0, 16\]"),
    "one dimension": (".lora_up.weight", torch.zeros(16), r"has the shape \[16\]"),
}


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_a_file_of_bad_numbers_is_named_with_its_layer(fault: str, unet: Any, tmp_path: Path) -> None:
    end, tensor, message = BAD_TENSORS[fault]
    file = tmp_path / "bad.safetensors"
    save_file({**layouts()["kohya"], KEY + end: tensor}, file)
    with pytest.raises(ValueError, match=rf"adapter 'a' \(.*bad.safetensors\): '{KEY}{end}' {message}.*Take another"):
        read_adapter("a", file, unet)
    text = {f"lora_te_text_model.x{end}": tensor}
    with pytest.raises(ValueError, match=f"adapter 'a': .*lora_te.* {message}"):
        open_adapter("a", {**layouts()["kohya"], **text})


BAD_CONFIGURATIONS = {
    "{broken": "lora_adapter_metadata is '{broken'",
    "[1]": r"lora_adapter_metadata is '\[1\]'",
    '{"unet.lora_alpha": "x"}': "lora_alpha 'x', which is no finite number",
    '{"unet.lora_alpha": NaN}': "lora_alpha nan, which is no finite number",
    '{"unet.r": []}': None,
    '{"unet.r": [1]}': r"r \[1\], which is no finite number",
    '{"unet.alpha_pattern": [1]}': "alpha_pattern .1., which is no mapping",
    '{"unet.alpha_pattern": {"to_q": null}}': "alpha_pattern 'to_q' None, which is no finite number",
    '{"unet.alpha_pattern": {"(": 1}}': r"alpha_pattern '\('",
}


@pytest.mark.parametrize("header", BAD_CONFIGURATIONS)
def test_a_broken_configuration_is_named_with_its_file(header: str, unet: Any, tmp_path: Path) -> None:
    save_file(layouts()["diffusers"], tmp_path / "a.safetensors", {"lora_adapter_metadata": header})
    message = BAD_CONFIGURATIONS[header]
    if message is None:
        read_adapter("q", tmp_path / "a.safetensors", unet)
        return
    with pytest.raises(ValueError, match=rf"adapter 'q' \(.*a.safetensors\): .*{message}.*save the adapter again"):
        read_adapter("q", tmp_path / "a.safetensors", unet)


def test_a_broken_configuration_beside_a_file_is_named(unet: Any, tmp_path: Path) -> None:
    save_file(layouts()["peft"], tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"adapter_config.json is '\{broken'"):
        read_adapter("q", tmp_path, unet)
