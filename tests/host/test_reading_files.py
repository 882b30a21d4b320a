"""How adapter files are read: bytes, metadata, limits, and what is cached."""

import gc
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy_models
import folder_paths
import nodes as host_nodes
import pytest
import safetensors.torch
import torch
from comfy_adapters import kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.files import RewardLoRAs, read_lora
from diffusion_blend.nodes.adapters.fitting import bank_patcher
from diffusion_blend.nodes.inputs import LoadRewardLoRAs, adapter_files


def test_files_that_are_no_safetensors_are_refused(loras_folder, tmp_path):
    whole = (loras_folder / write(loras_folder, "whole", kohya("sd3", 1))).read_bytes()
    cases = {
        "truncated.safetensors": (whole[: len(whole) // 2], "cannot be read as safetensors"),
        "header.safetensors": (b"\xff" * 64, "cannot be read as safetensors"),
        "empty.safetensors": (b"", "cannot be read as safetensors"),
        "pickle.ckpt": (b"\x80\x04.", "is not a .safetensors file .*may be pickles"),
        "pickle.sft": (b"\x80\x04.", "cannot be read as safetensors"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            read_lora(str(tmp_path / name), 1.0)
    write(tmp_path, "nothing", {})
    with pytest.raises(ValueError, match="nothing.safetensors holds no tensors"):
        read_lora(str(tmp_path / "nothing.safetensors"), 1.0)


def test_sft_is_safetensors_by_another_name(sd3, folder):
    """The host's Load LoRA reads both endings."""
    file = folder / write(folder, "named", kohya("sd3", 1))
    file.rename(folder / "named.sft")
    (folder / "other.pt").write_bytes((folder / "named.sft").read_bytes())
    folder_paths.filename_list_cache.clear()
    assert "named.sft" in adapter_files() and "other.pt" not in adapter_files()
    loras = load_loras(["named.sft"], [0.7])
    assert loras.names == ["named"]
    expected = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd3.model, "named.sft", 0.7)[0]
    found = sd3.sample(blend_model(sd3.model, loras, preference(1)), steps=1)
    assert difference(found, sd3.sample(expected, steps=1)) < 1e-5


def with_scale(tensors, model):
    """The LoRA as a DoRA, with the norms of the model's weights as scales."""
    hosts, weights = comfy.lora.model_lora_keys_unet(model.model, {}), model.model.state_dict()
    scaled = dict(tensors)
    for key in tensors:
        name, end, _ = key.partition(".lora_up.weight")
        if end and isinstance(hosts[name], str):
            weight = weights[hosts[name]].float()
            scaled[f"{name}.dora_scale"] = 1.1 * weight.flatten(1).norm(dim=1)[:, None]
    assert len(scaled) > len(tensors)
    return scaled


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

    # Two nodes of one loader: the second one's own may be bypassed, and then hands on the first. Its weights count as 0.
    loras = sd3.loras(2)
    first, second = (execute(*weights).args[0] for weights in ((0.5, 0.5, 0.5, 0.0), (0.5, 0.0, 0.0, 0.0)))
    assert loras.arrange(first.followed_by(second)).weights == (0.5, 0.5)
    unlinked = PreferenceWeights.execute(0.5, 0.0, 0.0, 0.0, 1.0).args[0]
    chained = "weight_1 of Preference Weights number 2 is 0.5, but there is no adapter for it, only sd3-0, sd3-1"
    with pytest.raises(ValueError, match=chained):
        loras.coefficients(replace(first.followed_by(unlinked), links=()))
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


def test_banks_of_earlier_loras_on_the_model_are_let_go(sd3, loras_folder):
    """A DoRA reads the weights that an earlier Load LoRA changes, so each strength there makes another bank."""
    file = write(loras_folder, "banks-dora", with_scale(kohya("sd3", 4), sd3.model))
    loras = load_loras([Path(file).name])
    plain = sd3.sample(blend_model(sd3.model, loras, preference(1.0)))
    images = []
    for strength in (0.1, 0.2, 0.3, 0.4):
        (changed,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd3.model, sd3.files[0], strength)
        images.append(sd3.sample(blend_model(changed, loras, preference(1.0))))
        assert len(loras.banks[sd3.model.model]) <= 2
    again = sd3.sample(blend_model(changed, loras, preference(1.0)))
    assert torch.equal(again, images[-1]) and len({float(image.sum()) for image in (plain, *images)}) == 5
    assert torch.equal(sd3.sample(blend_model(sd3.model, loras, preference(1.0))), plain)


def test_a_changed_file_is_read_again(loras_folder):

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
