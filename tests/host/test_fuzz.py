"""Mutated adapter files: each fits and equals the host's own patching, or gives our own error that names the file.

``make test`` runs a hundred and fifty; ``pytest -m full tests/host/test_fuzz.py`` runs 100,000 files and 10,000 preferences.
``FUZZ_FILES=20000 FUZZ_SEED=3`` makes it another number of files, others for each seed.
``make fuzz`` checks the same law on files that coverage guides (`fuzz_reader.py`).
"""

import json
import math
import os
import struct

import pytest
import torch
from diffusion_blend.blending.plans import make_planner
from diffusion_blend.blending.preference import Preference
from diffusion_blend.blending.step_info import StepInfo
from diffusion_blend.blending.updates import Difference
from diffusion_blend.nodes.adapters import fitting
from diffusion_blend.nodes.adapters.base_weights import BaseWeights
from diffusion_blend.nodes.adapters.files import read_lora
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from reader_law import ENDINGS, KERNEL, LINEAR, NUMBERS, World, check_file
from safetensors.torch import save

FEW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FILES, SEED = (int(os.environ.get(name, default)) for name, default in (("FUZZ_FILES", "100000"), ("FUZZ_SEED", "0")))
MANY = settings(max_examples=FILES, deadline=None, suppress_health_check=list(HealthCheck))

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.int64,
    torch.bool,
]


@pytest.fixture(scope="module")
def reader_world():
    return World()


@st.composite
def mutated_tensors(draw, world):
    """Return a good file's tensors with a few errors."""
    tensors = dict(world.files[draw(st.sampled_from(list(world.files)))])
    for _ in range(draw(st.integers(0, 3))):
        if not tensors:
            break
        key = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[key]
        kind = draw(st.sampled_from(["number", "dtype", "shape", "drop", "rename", "copy", "alpha", "other"]))
        if kind == "number" and tensor.numel() and tensor.is_floating_point():
            changed = tensor.float().flatten().clone()
            changed[draw(st.integers(0, changed.numel() - 1))] = draw(st.sampled_from(NUMBERS))
            tensors[key] = changed.reshape(tensor.shape)
        elif kind == "dtype":
            tensors[key] = tensor.to(draw(st.sampled_from(DTYPES)))
        elif kind == "shape":
            shape = draw(st.lists(st.integers(0, 200), max_size=5))
            tensors[key] = torch.ones(shape) if math.prod(shape) < 100_000 else torch.ones(1)
        elif kind == "drop":
            del tensors[key]
        elif kind == "rename":
            ending = draw(st.sampled_from(ENDINGS))
            tensors[key.rsplit(".", 2 if key.endswith("weight") else 1)[0] + "." + ending] = tensors.pop(key)
        elif kind == "copy":
            tensors[draw(st.text(min_size=1, max_size=20))] = tensor
        elif kind == "alpha":
            base = key.rsplit(".", 2 if key.endswith("weight") else 1)[0]
            tensors[base + ".alpha"] = torch.tensor(draw(st.sampled_from(NUMBERS)))
        elif kind == "other":
            tensors["lora_te_text_model_layer.lora_up.weight"] = tensor
    return tensors


class Mutated:
    """A file's bytes with a repr that fits on a line."""

    def __init__(self, content, kind):
        self.content, self.kind = content, kind

    def __repr__(self):
        return f"<{self.kind}: {len(self.content)} bytes {self.content[:2000]!r}>"


@st.composite
def mutated_bytes(draw, world):
    """Return a file of mutated tensors whose bytes are mutated too: cut, flipped, with another header or header length."""
    content = bytearray(
        # For an empty dictionary without tensors safetensors writes a header that is no JSON, so use None.
        save({key: t.clone().contiguous() for key, t in draw(mutated_tensors(world)).items()}, draw(metadata) or None)
    )
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "flip", "length", "header"]))
    if kind == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif kind == "flip" and content:
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, min(len(content) - 1, 4000)))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "length":
        content[:8] = struct.pack("<Q", draw(st.sampled_from([0, 1, 7, 2**31, 2**63, len(content), len(content) * 2])))
    elif kind == "header":
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        names = [name for name in header if name != "__metadata__"]
        if names:
            entry = header[draw(st.sampled_from(names))]
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(
                st.sampled_from(
                    ["F32", "I8", "BF16", "F4", [], [0, 4], [10**9, 10**9], [4, 0], [-1, 3], {}, None, "x" * 100]
                )
            )
        encoded = json.dumps(header).encode()
        content = bytearray(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])
    return Mutated(bytes(content), kind)


metadata = st.none() | st.dictionaries(
    st.sampled_from(["diffusion_blend.kl_weight", "diffusion_blend.reward", "ss_network_module", "x"]),
    st.sampled_from(["0.1", "nan", "-1", "", "many", "1e400", "y" * 10_000, "\u2028\x00"]),
    max_size=3,
)


@FEW
@given(data=st.data())
def test_mutated_files_fit_or_are_refused_by_name(reader_world, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    check_file(data.draw(mutated_bytes(reader_world)).content, path, reader_world)


FOUND = {
    "LoKr's alpha NaN": ("LoKr", f"{LINEAR}.alpha", torch.tensor(math.nan)),
    "LoKr's alpha infinite": ("LoKr", f"{LINEAR}.alpha", torch.tensor(math.inf)),
    "LoHa's alpha NaN": ("LoHa", f"{LINEAR}.alpha", torch.tensor(math.nan)),
    "alpha NaN": ("LoCon", f"{KERNEL}.alpha", torch.tensor(math.nan)),
    "OFT's alpha NaN": ("OFT", f"{LINEAR}.alpha", torch.tensor(math.nan)),
    "BOFT's alpha infinite": ("BOFT", f"{LINEAR}.alpha", torch.tensor(math.inf)),
    "GLoRA's alpha NaN": ("GLoRA", f"{LINEAR}.alpha", torch.tensor(math.nan)),
    "a shape that is one number": ("DoRA", f"{LINEAR}.reshape_weight", torch.tensor(3.0)),
    "a shape that is a table": ("DoRA", f"{LINEAR}.reshape_weight", torch.ones(2, 2)),
}


@pytest.mark.parametrize(("kind", "key", "value"), FOUND.values(), ids=FOUND)
def test_files_that_once_came_through(kind, key, value, reader_world, tmp_path):
    check_file(save({**reader_world.files[kind], key: value}), tmp_path / "found.safetensors", reader_world)


def test_no_update_that_is_not_finite_is_applied(reader_world, tmp_path, monkeypatch):
    """Whichever part of the reader makes it."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(reader_world.files["kohya"]))
    bad = [(LINEAR, Difference(torch.full((128, 128), math.inf)))]
    monkeypatch.setattr(fitting, "convert", lambda *_: bad)
    with pytest.raises(ValueError, match=r"a\.safetensors.*NaN or infinite"):
        fitting.fit_adapter(
            read_lora(str(path), 1.0), reader_world.network, reader_world.key_map, BaseWeights(reader_world.model)
        )


@pytest.mark.full
@seed(SEED)
@MANY
@given(data=st.data())
def test_a_hundred_thousand_mutated_files(reader_world, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    check_file(data.draw(mutated_bytes(reader_world)).content, path, reader_world)


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 0.5, 1.0, -0.0, 1e-320, 1e308])


def check_preference(weights, kl_scale, names, kl_weights, method):
    try:
        coefficients = Preference(tuple(weights), kl_scale).coefficients(names, kl_weights)
        planner = make_planner(method, coefficients)
    except ValueError as error:
        assert str(error)
        return
    assert len(coefficients) == len(names)
    assert all(map(math.isfinite, coefficients))

    plan = planner(StepInfo(1, 7, 3, (0, 1)))
    assert len(plan.gates) == len(plan.mix) >= 1
    assert math.fsum(plan.mix) == pytest.approx(1, abs=1e-6 * max(1, *map(abs, plan.mix)))


preferences = given(
    weights=st.lists(numbers, max_size=8),
    kl_scale=numbers,
    names=st.lists(st.text(max_size=5), max_size=8),
    method=st.sampled_from(["blend", "soup", "stochastic", "early", "other"]),
    data=st.data(),
)


@FEW
@preferences
def test_random_preferences_make_a_plan_or_are_refused(weights, kl_scale, names, method, data):
    kl_weights = data.draw(st.lists(st.none() | numbers, min_size=len(names), max_size=len(names)))
    check_preference(weights, kl_scale, names, kl_weights, method)


@pytest.mark.full
@settings(MANY, max_examples=10_000)
@preferences
def test_ten_thousand_random_preferences(weights, kl_scale, names, method, data):
    kl_weights = data.draw(st.lists(st.none() | numbers, min_size=len(names), max_size=len(names)))
    check_preference(weights, kl_scale, names, kl_weights, method)
