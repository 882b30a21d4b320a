"""Files with wrong headers: each is refused with our own error, or is read as its header says. Neither takes much memory."""

import json
import struct
from pathlib import Path

import comfy_adapters
import pytest
import torch
from comfy_adapters import kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.files import read_lora
from safetensors.torch import save

DOWN, UP = "lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"
LENGTH = 16  # bytes of each of the two factors
MIB = 2**20


def tensor(start, dtype="F32", shape=(2, 2), size=LENGTH):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def file(header, data=bytes(2 * LENGTH), length=None):
    """Make a safetensors file with this header, given as JSON text or as data."""
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


GOOD = {DOWN: tensor(0), UP: tensor(LENGTH)}
REFUSED = {
    "overlapping offsets": file({DOWN: tensor(0), UP: tensor(0)}, bytes(LENGTH)),
    "half overlapping offsets": file({DOWN: tensor(0), UP: tensor(8)}, bytes(24)),
    "a hole between tensors": file({DOWN: tensor(0), UP: tensor(LENGTH + 8)}, bytes(2 * LENGTH + 8)),
    "data behind the tensors": file(GOOD, bytes(2 * LENGTH + 1)),
    "data that ends early": file(GOOD, bytes(2 * LENGTH - 1)),
    "offsets the wrong way round": file({DOWN: {**tensor(0), "data_offsets": [LENGTH, 0]}, UP: tensor(LENGTH)}),
    "negative offsets": file({DOWN: {**tensor(0), "data_offsets": [-LENGTH, 0]}, UP: tensor(0)}),
    "a shape of more than the data": file({DOWN: tensor(0, shape=(200, 200)), UP: tensor(LENGTH)}),
    "a shape beyond 64 bits": file({DOWN: tensor(0, shape=(2**40, 2**40)), UP: tensor(LENGTH)}),
    "a negative shape": file({DOWN: tensor(0, shape=(-2, -2)), UP: tensor(LENGTH)}),
    "an unknown dtype": file({DOWN: tensor(0, dtype="F7"), UP: tensor(LENGTH)}),
    "no dtype": file({DOWN: {"shape": [2, 2], "data_offsets": [0, LENGTH]}, UP: tensor(LENGTH)}),
    "a header of 2 GiB that is not there": file(GOOD, length=2**31),
    "a header of 8 EiB that is not there": file(GOOD, length=2**63 - 1),
    "a header that ends in the data": file(GOOD, length=len(json.dumps(GOOD)) + 8),
    "a header that ends early": file(GOOD, length=20),
    "a header that is no object": file("[]"),
    "a header of brackets": file("[" * 100_000),
    "a header of half a character": file(json.dumps(GOOD)[:-1] + "\x80"),
    "metadata that are numbers": file({"__metadata__": {"diffusion_blend.kl_weight": 0.5}, **GOOD}),
    "metadata that are a list": file({"__metadata__": ["x"], **GOOD}),
    "no tensors, 10 MB of metadata": file({"__metadata__": {"x": "y" * 10_000_000}}, b""),
}


def peak_memory():
    """Return the peak memory of this process since the last `forget_peak`, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_lies_is_refused_and_costs_no_memory(name, tmp_path):
    path = tmp_path / "liar.safetensors"
    path.write_bytes(REFUSED[name])
    forget_peak()
    before = peak_memory()
    with pytest.raises(ValueError, match=r"liar\.safetensors"):
        read_lora(str(path), 1.0)
    assert peak_memory() - before < 2 * len(REFUSED[name]) + 16 * MIB


def test_the_same_header_without_a_lie_is_read(tmp_path):
    (tmp_path / "honest.safetensors").write_bytes(file(GOOD))
    assert set(read_lora(str(tmp_path / "honest.safetensors"), 1.0).tensors) == {DOWN, UP}


def test_a_key_given_twice_is_one_tensor_or_refused(tmp_path):
    """JSON allows a repeated key, and the format does not. If the file is read, the tensor must be one of the two."""
    twice = (
        f'{{"{DOWN}": {json.dumps(tensor(0))}, "{UP}": {json.dumps(tensor(LENGTH))}, "{UP}": {json.dumps(tensor(0))}}}'
    )
    (tmp_path / "twice.safetensors").write_bytes(file(twice))
    with pytest.raises(ValueError, match=r"twice\.safetensors"):
        read_lora(str(tmp_path / "twice.safetensors"), 1.0)


def test_a_large_file_takes_less_than_twice_its_size(tmp_path):
    content = save({f"{i}.lora_up.weight": torch.ones(1024, 1024) for i in range(16)})
    path = tmp_path / "large.safetensors"
    path.write_bytes(content)
    read_lora(str(path), 1.0)  # the first call loads libraries, whose memory does not count
    forget_peak()
    before = peak_memory()
    adapter = read_lora(str(path), 1.0)
    assert peak_memory() - before < 2 * len(content)
    assert len(adapter.tensors) == 16


def test_a_rank_above_the_layers_size_is_the_hosts_patch(sd3, loras_folder):
    tensors = kohya("sd3", 7, rank=300, endings=("x_block.attn.proj",), alpha=30)
    assert tensors[next(key for key in tensors if "lora_down" in key)].shape == (300, 128)
    write(loras_folder, "tall", tensors)
    blended = blend_model(sd3.model, load_loras(["tall.safetensors"]), preference(1.0))
    expected = sd3.sample(comfy_adapters.Patched("sd3").model(tensors))
    assert difference(sd3.sample(blended), expected) < 1e-5
    assert difference(sd3.sample(sd3.model), expected) > 1e-3
