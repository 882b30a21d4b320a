"""Adapter files: every naming that the host reads, and the message of every refusal."""

import gc
import json
import logging
import struct
import sys
from pathlib import Path

import comfy_adapters
import comfy_models
import pytest
import safetensors.torch
import torch
from comfy_adapters import ATTENTION, CONVOLUTIONS, JOINT, kohya, layers, low_rank, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.files import RewardLoRAs, read_lora
from diffusion_blend.nodes.adapters.fitting import bank_patcher
from diffusion_blend.nodes.inputs import LoadRewardLoRAs


def renamed(tensors, rename):
    return {rename(key): tensor for key, tensor in tensors.items()}


def module_of(key):
    """Return module and ending of lora_unet_<module>.<ending>."""
    module, ending = key.split(".", 1)
    return module.removeprefix("lora_unet_"), ending


def generic(kind, seed, endings):
    """Return PEFT endings on the checkpoint's own names: diffusion_model.<layer>.lora_A/B.weight, without alpha."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layers(kind, endings).items():
        up, down = low_rank(shape, 3, generator)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up
        tensors[f"diffusion_model.{name}.lora_A.weight"] = down
    return tensors


def diffusers_names(kind):
    """Return the host's table: diffusers' weight name -> the network's (with a slice for a fused weight)."""
    import comfy.utils

    config = comfy_models.load(kind).model.model_config.unet_config
    return comfy.utils.unet_to_diffusers(config) if kind != "sd3" else comfy.utils.mmdit_to_diffusers(config)


def kohya_diffusers(seed):
    """Return kohya's naming over diffusers' layer names, as in most SD 1.5 files."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd15")
    tensors = {}
    for theirs, ours in diffusers_names("sd15").items():
        if (
            theirs.endswith(("to_q.weight", "to_v.weight", "conv1.weight", "to_out.0.weight", "ff.net.2.weight"))
            and ours in shapes
        ):
            key = "lora_unet_" + theirs.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = low_rank(
                shapes[ours].shape, 4, generator
            )
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return tensors


def diffusers_processor(seed):
    """Return the naming of diffusers' attention processors: unet.<...>.processor.to_q_lora.up.weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd15")
    tensors = {}
    for theirs, ours in diffusers_names("sd15").items():
        if theirs.endswith(("to_q.weight", "to_out.0.weight")) and ours in shapes:
            key = "unet." + theirs.removesuffix(".weight").replace(".to_", ".processor.to_").removesuffix(".0")
            tensors[f"{key}_lora.up.weight"], tensors[f"{key}_lora.down.weight"] = low_rank(
                shapes[ours].shape, 4, generator
            )
    return tensors


def sd3_slices(seed):
    """Return diffusers' separate to_q, to_k, to_v of SD3, which are slices of the host's fused qkv, and its swapped final
    modulation."""
    generator = torch.Generator().manual_seed(seed)
    shapes = comfy_models.state_dict("sd3")
    tensors = {}
    for theirs, ours in diffusers_names("sd3").items():
        if not theirs.endswith(".weight") or not theirs.startswith(("transformer_blocks", "norm_out")):
            continue
        name = ours if isinstance(ours, str) else ours[0]
        if name not in shapes or shapes[name].ndim != 2:
            continue
        shape = (
            shapes[name].shape
            if isinstance(ours, str) or ours[1] is None
            else torch.Size([ours[1][2], shapes[name].shape[1]])
        )
        key = "transformer." + theirs.removesuffix(".weight")
        tensors[f"{key}.lora_B.weight"], tensors[f"{key}.lora_A.weight"] = low_rank(shape, 3, generator)
    return tensors


def tucker(seed):
    """Make a LoCon with a Tucker core: down 1x1, mid k x k, up 1x1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layers("sd15", ("in_layers.2", "out_layers.3")).items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, shape[1], 1, 1, generator=generator) / shape[1] ** 0.5
        tensors[f"{key}.lora_mid.weight"] = torch.randn(4, 4, *shape[2:], generator=generator) / 6
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], 4, 1, 1, generator=generator) * 0.2
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    return tensors


def mixed_linear_shapes(seed):
    """Store linear layers' factors as 1x1 convolutions, and the reverse. The host only looks at the product."""
    tensors = kohya("sd15", seed, endings=("attn1.to_q", "proj_in"))
    return {key: tensor[..., None, None] if "to_q" in key else tensor.flatten(1) for key, tensor in tensors.items()}


FILES = {
    "kohya": ("sd15", lambda: kohya("sd15", 11)),
    "kohya, diffusers' layer names": ("sd15", lambda: kohya_diffusers(12)),
    "diffusers' attention processors": ("sd15", lambda: diffusers_processor(13)),
    "PEFT endings": ("sd15", lambda: generic("sd15", 14, ATTENTION)),
    "LoCon convolutions": ("sd15", lambda: kohya("sd15", 15, endings=CONVOLUTIONS, alpha=1)),
    "LoCon with a Tucker core": ("sd15", lambda: tucker(16)),
    "shapes of the other layer kind": ("sd15", lambda: mixed_linear_shapes(17)),
    "half precision": ("sd15", lambda: {key: tensor.half() for key, tensor in kohya("sd15", 18).items()}),
    "negative alpha": ("sd15", lambda: kohya("sd15", 19, alpha=-2)),
    "alpha 0": ("sd15", lambda: kohya("sd15", 20, alpha=0)),
    "fused qkv": ("sd3", lambda: kohya("sd3", 21, endings=JOINT)),
    "slices of a fused qkv": ("sd3", lambda: sd3_slices(22)),
    "PEFT endings on a transformer": ("sd3", lambda: generic("sd3", 23, JOINT)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_naming_equals_the_hosts_own_patching(worlds, loras_folder, name):
    kind, make = FILES[name]
    world = worlds(kind)
    tensors = make()
    assert tensors
    write(loras_folder, "file", tensors)
    blended = blend_model(world.model, load_loras(["file.safetensors"]), preference(1.0))
    expected = world.sample(comfy_adapters.Patched(kind).model(tensors))  # a copy that ends with the test
    assert difference(world.sample(blended), expected) < 1e-5
    if name != "alpha 0":
        assert difference(world.sample(world.model), expected) > 1e-3


def test_slices_reach_all_three_parts_of_the_qkv():
    keys = sd3_slices(0)
    assert {
        part for part in ("to_q", "to_k", "to_v", "add_q_proj", "norm_out") if any(part in key for key in keys)
    } == {
        "to_q",
        "to_k",
        "to_v",
        "add_q_proj",
        "norm_out",
    }


def test_the_name_is_the_metadatas_reward_or_the_files(loras_folder):
    write(loras_folder, "plain", kohya("sd3", 1))
    write(
        loras_folder,
        "tuned",
        kohya("sd3", 1),
        {"diffusion_blend.reward": "aesthetic", "diffusion_blend.kl_weight": "0.25"},
    )
    loras = load_loras(["plain.safetensors", "tuned.safetensors"])
    assert loras.names == ["plain", "aesthetic"]
    assert loras.kl_weights == [None, 0.25]


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"unet.r": 8, "unet.lora_alpha": 16}, 2),
        ({"transformer.r": 16, "transformer.lora_alpha": 8, "transformer.use_rslora": True}, 2),
        ({"unet.r": 8, "unet.lora_alpha": 8}, None),
        ({"text_encoder.r": 8, "text_encoder.lora_alpha": 16}, None),
        ({"unet.r": 0, "unet.lora_alpha": 16}, None),
        (["no object"], None),
    ],
)
def test_a_scale_that_only_the_header_has_is_said(sd3, loras_folder, caplog, settings, factor):
    write(loras_folder, "peft", kohya("sd3", 1), {"lora_adapter_metadata": json.dumps(settings)})
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        blend_model(sd3.model, load_loras(["peft.safetensors"]), preference(1.0))
    assert ("in Load Reward LoRAs, or set its strength to 2" in caplog.text) == (factor == 2)
    assert ("alpha / rank" in caplog.text) == (factor is not None)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"unet.r": 8, "unet.lora_alpha": 20, "text_encoder.r": 8, "text_encoder.lora_alpha": 4}, 2.5),
        ({"transformer.r": 16, "transformer.lora_alpha": 2, "transformer.use_rslora": True}, 0.5),
        ({"unet.r": 8, "unet.lora_alpha": 16, "unet.rank_pattern": {"to_k": 4}}, 1),
        ({}, 1),
    ],
)
def test_the_scale_of_the_header_is_applied_where_it_is_chosen(sd3, loras_folder, caplog, settings, factor):
    write(loras_folder, "scaled", kohya("sd3", 1), {"lora_adapter_metadata": json.dumps(settings)})
    write(loras_folder, "plain", kohya("sd3", 1))
    loras = LoadRewardLoRAs.execute(lora_1="scaled.safetensors", strength_1=0.6, scale="as trained").args[0]
    expected = sd3.sample(blend_model(sd3.model, load_loras(["plain.safetensors"], [0.6 * factor]), preference(1.0)))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        assert difference(sd3.sample(blend_model(sd3.model, loras, preference(1.0))), expected) < 1e-6
    assert "alpha / rank" not in caplog.text
    (adapter,) = loras
    assert adapter.strength == 0.6
    assert adapter.text_strength == pytest.approx(0.3 if "text_encoder.r" in settings else 0.6)
    as_comfyui = LoadRewardLoRAs.execute(lora_1="scaled.safetensors", strength_1=0.6, scale="as ComfyUI").args[0]
    assert [adapter.network_strength for adapter in as_comfyui] == [0.6]


def test_a_title_in_the_header_is_the_name(loras_folder):
    write(loras_folder, "titled", kohya("sd3", 1), {"modelspec.title": "Film  grain\n"})
    assert load_loras(["titled.safetensors"]).names == ["Film grain"]


def damaged(change):
    """Change the first attention layer's factors of a good file."""
    tensors = kohya("sd3", 1)
    up = next(key for key in tensors if key.endswith("lora_up.weight"))
    change(tensors, up, up.replace("lora_up", "lora_down"))
    return tensors


def put(key, value):
    return lambda tensors, up, down: tensors.__setitem__({"up": up, "down": down}.get(key, key), value)


BAD_TENSORS = {
    "NaN": (put("up", torch.full((384, 4), torch.nan)), "holds NaN or infinite numbers"),
    "infinity": (put("down", torch.full((4, 128), torch.inf)), "holds NaN or infinite numbers"),
    "NaN of 8 bits": (
        put("up", torch.full((384, 4), torch.nan).to(torch.float8_e5m2)),
        "holds NaN or infinite numbers",
    ),
    "rank 0": (lambda t, up, down: t.update({up: torch.zeros(384, 0), down: torch.zeros(0, 128)}), "its rank is 0"),
    "unequal ranks": (put("up", torch.ones(384, 3)), "no low-rank pair"),
    "missing down": (lambda t, up, down: t.pop(down), "has no lora_down.weight beside it"),
    "missing up": (lambda t, up, down: t.pop(up), "has no lora_up.weight beside it"),
    "alpha of two numbers": (
        put("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", torch.ones(2)),
        "alpha is a single number",
    ),
    "alpha NaN": (
        put("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", torch.tensor(torch.nan)),
        "its alpha is nan",
    ),
    "a difference with NaN": (
        put("diffusion_model.final_layer.linear.diff", torch.full((64, 128), torch.nan)),
        "holds NaN or infinite numbers",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_by_name_and_nothing_is_applied(sd3, loras_folder, name):
    change, message = BAD_TENSORS[name]
    write(loras_folder, "bad", damaged(change))
    before = sd3.sample(sd3.model)
    with pytest.raises(ValueError, match=message) as error:
        blend_model(sd3.model, load_loras(["bad.safetensors"]), preference(1.0))
    assert "bad.safetensors" in str(error.value)
    assert comfy_adapters.hooks_on(sd3.model) == 0
    assert torch.equal(sd3.sample(sd3.model), before)


def test_an_adapter_for_another_architecture_is_refused(sd3, sd15, loras_folder):
    with pytest.raises(
        ValueError, match=r"sd15-0\.safetensors: only 0 of its \d+ layers fit this model.*\(SD 1.5\).*is SD3"
    ):
        blend_model(sd3.model, load_loras([sd15.files[0]]), preference(1.0))
    wider = {key: tensor.repeat(1, 2) if "lora_down" in key else tensor for key, tensor in sd15.adapters[0].items()}
    write(loras_folder, "wider", wider)
    with pytest.raises(ValueError, match=r"wider\.safetensors: only 0 of .*another architecture.* of another shape"):
        blend_model(sd15.model, load_loras(["wider.safetensors"]), preference(1.0))


PARTS = {
    "layers that are not there": (
        {
            f"lora_unet_no_such_layer_{i}.lora_{part}.weight": torch.ones(4, 4)
            for i in range(2)
            for part in ("up", "down")
        },
        "Skipped: 2 that this model does not have (lora_unet_no_such_layer_0, lora_unet_no_such_layer_1)",
    ),
    "a layer of another shape": (
        {
            "diffusion_model.x_embedder.proj.lora_B.weight": torch.ones(128, 2, 1, 1),
            "diffusion_model.x_embedder.proj.lora_A.weight": torch.ones(2, 24, 2, 2),
        },
        "Skipped: 1 of another shape (diffusion_model.x_embedder.proj.weight: its update is 128 x 96, but the layer's weight "
        "is 128 x 64)",
    ),
    "text encoders": (
        {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{part}.weight": torch.tensor(torch.nan) for part in "ab"},
        "also holds 2 text-encoder weights",
    ),
    "extras": (
        {
            "diffusion_model.joint_blocks.0.x_block.attn.qkv.bias_indices": torch.ones(2, 3, dtype=torch.int16),
            "lora_unet_gone.alpha": torch.tensor(torch.nan),
            "some.other.thing": torch.zeros(3, dtype=torch.int64),
        },
        "",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_part_that_fits_is_applied_and_what_is_skipped_is_said(sd3, loras_folder, caplog, name):
    more, message = PARTS[name]
    write(loras_folder, "part", sd3.adapters[0] | more)
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        blended = blend_model(sd3.model, load_loras(["part.safetensors"]), preference(1.0))
    assert message in caplog.text and bool(message) == ("part.safetensors" in caplog.text)
    assert difference(sd3.sample(blended), sd3.sample(sd3.patched.model(sd3.adapters[0]))) < 1e-5


def test_files_that_are_no_safetensors_are_refused(loras_folder, tmp_path):
    whole = (loras_folder / write(loras_folder, "whole", kohya("sd3", 1))).read_bytes()
    cases = {
        "truncated.safetensors": (whole[: len(whole) // 2], "cannot be read as safetensors"),
        "header.safetensors": (b"\xff" * 64, "cannot be read as safetensors"),
        "empty.safetensors": (b"", "cannot be read as safetensors"),
        "pickle.ckpt": (b"\x80\x04.", "is not a .safetensors file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            read_lora(str(tmp_path / name), 1.0)
    write(tmp_path, "nothing", {})
    with pytest.raises(ValueError, match="nothing.safetensors holds no tensors"):
        read_lora(str(tmp_path / "nothing.safetensors"), 1.0)


KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def test_what_is_read_is_what_safetensors_reads(tmp_path):
    """Every dtype, scalars, empty tensors, and tensors that begin at an odd byte."""
    tensors = {"odd": torch.ones(3).to(torch.float8_e5m2), "none": torch.empty(0, 4), "alpha": torch.tensor(4.0)}
    tensors |= {str(kind): torch.randn(3, 300).to(kind) for kind in KINDS}
    path = tmp_path / "kinds.safetensors"
    content = safetensors.torch.save(tensors, {"diffusion_blend.reward": "a name"})
    path.write_bytes(content)
    adapter = read_lora(str(path), 1.0)
    expected = safetensors.torch.load_file(path)
    assert adapter.name == "a name" and adapter.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert adapter.tensors[key].dtype == tensor.dtype and adapter.tensors[key].shape == tensor.shape
        assert torch.equal(adapter.tensors[key].float(), tensor.float())


def test_numbers_at_an_odd_place(tmp_path):
    """The format allows tensors at odd bytes after a tensor of bytes. Its own writer avoids them by sorting."""
    data = b"\x01" + struct.pack("<2f", 0.5, -3.0)
    header = json.dumps(
        {
            "byte": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]},
            "two": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert read_lora(str(path), 1.0).tensors["two"].tolist() == [0.5, -3.0]


def test_a_file_written_anew_does_not_change_what_was_read(tmp_path):
    tensors = kohya("sd3", 1)
    path = Path(write(tmp_path, "adapter", tensors))
    adapter = read_lora(str(path), 1.0)
    with path.open("r+b") as file:  # overwritten, as by a trainer that replaces its last result
        file.seek(-4096, 2)
        file.write(b"\0" * 4096)
    assert all(torch.equal(adapter.tensors[key], tensor) for key, tensor in tensors.items())


def test_reading_leaves_nothing_behind(tmp_path):
    path = write(tmp_path, "adapter", kohya("sd3", 1))
    count = len(read_lora(path, 1.0).tensors)
    for _ in range(3):
        read_lora(path, 1.0)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        read_lora(path, 1.0)
    gc.collect()
    assert sys.getallocatedblocks() - before < 20 * count / 4  # an object for every fourth tensor read


def test_a_kl_weight_of_0_in_the_metadata_means_unknown(tmp_path):
    """Version 0.1 wrote a 0 after trainings without a KL penalty."""
    path = write(tmp_path, "free", kohya("sd3", 1), {"diffusion_blend.kl_weight": "0"})
    assert read_lora(path, 1.0).kl_weight is None


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_impossible_kl_weights_in_the_metadata_are_refused(tmp_path, text):
    path = write(tmp_path, "lying", kohya("sd3", 1), {"diffusion_blend.kl_weight": text})
    with pytest.raises(
        ValueError, match=f"lying.safetensors: the metadata entry diffusion_blend.kl_weight is '{text}'"
    ):
        read_lora(path, 1.0)


def test_an_update_too_large_for_floats_is_refused(tmp_path, sd3):
    tensors = kohya("sd3", 1, alpha=1e30)
    large = {key: tensor * 1e20 if "lora_up" in key else tensor for key, tensor in tensors.items()}
    loras = RewardLoRAs((read_lora(write(tmp_path, "huge", large), 1.0),))
    with pytest.raises(ValueError, match=r"huge\.safetensors: .* its alpha or its strength makes numbers as large as"):
        bank_patcher(loras, sd3.model)


@pytest.mark.parametrize(
    ("down", "up", "words"),
    [
        ((3, 0), (128, 3), "its update is 128 x 0"),
        ((3, 128), (0, 3), "its update is 0 x 128"),
        ((0, 128), (128, 0), "its rank is 0"),
    ],
)
def test_a_factor_without_numbers_is_refused(tmp_path, sd3, down, up, words):
    layer = "diffusion_model.joint_blocks.0.x_block.attn.proj"
    tensors = {f"{layer}.lora_A.weight": torch.ones(down), f"{layer}.lora_B.weight": torch.ones(up)}
    loras = RewardLoRAs((read_lora(write(tmp_path, "empty", tensors), 1.0),))
    with pytest.raises(ValueError, match=rf"empty\.safetensors: .*{words}"):
        bank_patcher(loras, sd3.model)


def test_a_strength_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="strength of file.safetensors is nan"):
        read_lora(write(tmp_path, "file", kohya("sd3", 1)), float("nan"))


def test_a_missing_file_is_the_hosts_error(loras_folder):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_loras(["absent.safetensors"])


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="No LoRA is chosen"):
        load_loras(["None"])


def test_the_preference_is_checked_against_the_adapters_early(sd3):
    from diffusion_blend.nodes.inputs import PreferenceWeights

    def execute(*weights):
        values = {f"weight_{i}": weight for i, weight in enumerate(weights, 1)}
        return PreferenceWeights.execute(**values, kl_scale=1.0, reward_loras=sd3.loras(2))

    def execute_after(first, *weights):
        values = {f"weight_{i}": weight for i, weight in enumerate(weights, 1)}
        return PreferenceWeights.execute(**values, kl_scale=1.0, reward_loras=sd3.loras(2), preference=first.args[0])

    chained = "weight_1 of Preference Weights number 2 is 0.5, but there is no adapter for it, only sd3-0, sd3-1"
    with pytest.raises(ValueError, match=chained):
        execute_after(execute(0.5, 0.5, 0.5, 0.0), 0.5, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="All weights are 0 for sd3-0, sd3-1"):
        execute(0.0, 0.0, 0.0, 0.0)


def test_a_model_is_fitted_once_and_let_go_with_the_model(sd3):
    import gc

    loras = sd3.loras(2)
    assert bank_patcher(loras, sd3.model) is bank_patcher(loras, sd3.model.clone())
    other = comfy_models.load.__wrapped__("sd3")
    bank_patcher(loras, other)
    assert len(loras.banks) == 2
    del other
    gc.collect()
    assert len(loras.banks) == 1


def test_a_changed_file_is_read_again(loras_folder):
    from diffusion_blend.nodes.inputs import LoadRewardLoRAs

    inputs = {"lora_1": "changing.safetensors", "lora_2": "None", "lora_3": "None", "lora_4": "None"}
    write(loras_folder, "changing", kohya("sd3", 1))
    before = LoadRewardLoRAs.fingerprint_inputs(**inputs)
    assert LoadRewardLoRAs.fingerprint_inputs(**inputs) == before
    assert str(loras_folder) not in before, "the host writes it into images"
    write(loras_folder, "changing", kohya("sd3", 1, rank=5))
    assert LoadRewardLoRAs.fingerprint_inputs(**inputs) != before


def test_reward_loras_iterate_in_order(tmp_path):
    adapters = tuple(read_lora(write(tmp_path, name, kohya("sd3", 1)), 1.0) for name in "ab")
    assert [adapter.name for adapter in RewardLoRAs(adapters)] == ["a", "b"]
