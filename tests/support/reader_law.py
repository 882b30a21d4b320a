"""The law of the adapter reader: each file fits and equals the host's own patching, or is refused by name.

`tests/host/test_fuzz.py` (hypothesis) and `fuzz_reader.py` (atheris) make the files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.lora
import comfy_models
import torch
from comfy_adapters import kohya
from dense_updates import changes, host_changes
from diffusion_blend.blending.adapters import AdapterBank
from diffusion_blend.nodes.adapters.base_weights import BaseWeights
from diffusion_blend.nodes.adapters.endings import MAGNITUDES
from diffusion_blend.nodes.adapters.files import read_lora
from diffusion_blend.nodes.adapters.fitting import fit_adapter
from torch import Tensor

NUMBERS = [0.0, -1.0, 1e30, 1e-30, math.nan, math.inf, -math.inf, 3.0]
ENDINGS = [
    "lora_up.weight",
    "lora_down.weight",
    "alpha",
    "dora_scale",
    "lora_mid.weight",
    "lora_magnitude_vector",
    "diff",
    "diff_b",
    "set_weight",
    "reshape_weight",
    "w_norm",
    "hada_w1_a",
    "hada_t1",
    "lokr_w1",
    "lokr_w2",
    "oft_blocks",
    "",
]
LINEAR = "diffusion_model.joint_blocks.0.x_block.attn.proj"  # 128 x 128
KERNEL = "diffusion_model.x_embedder.proj"  # 128 x 16 x 2 x 2
SOME_LAYERS = (
    "diffusion_model.pos_embed",
    "diffusion_model.x_embedder",
    "diffusion_model.joint_blocks.0.x_block.attn",
    "lora_unet_joint_blocks_0_x_block_",
    "transformer.norm_out.",
    "transformer.transformer_blocks.1.attn.to_",
)
"""Beginnings of keys of every form: weights, other parameters, slices of fused layers, swapped halves."""
BOTH_FACTORED = {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 32)}
# Kind -> key -> shape. Each kind has one layer, so that a change of one tensor changes the kind of the file.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "PEFT": {f"{LINEAR}.lora_A.weight": (3, 128), f"{LINEAR}.lora_B.weight": (128, 3)},
    "slices": {
        f"transformer.transformer_blocks.1.attn.{name}.lora_{part}.weight": shape
        for name in ("to_q", "to_v")
        for part, shape in (("A", (3, 128)), ("B", (128, 3)))
    },
    "halves the other way round": {
        "transformer.norm_out.linear.lora_A.weight": (3, 128),
        "transformer.norm_out.linear.lora_B.weight": (256, 3),
    },
    "LoHa": {f"{LINEAR}.hada_w{i}_{part}": (128, 2) if part == "a" else (2, 128) for i in (1, 2) for part in "ab"},
    "LoKr": {f"{LINEAR}.lokr_w1": (4, 4), f"{LINEAR}.lokr_w2_a": (32, 2), f"{LINEAR}.lokr_w2_b": (2, 32)},
    "LoKr, both factored": {f"{LINEAR}.{name}": shape for name, shape in BOTH_FACTORED.items()},
    "LoKr, whole": {f"{LINEAR}.lokr_w1": (4, 4), f"{LINEAR}.lokr_w2": (32, 32)},
    "LoKr with a core": {
        f"{KERNEL}.{name}": shape
        for name, shape in {
            "lokr_w1": (4, 4),
            "lokr_t2": (2, 2, 2, 2),
            "lokr_w2_a": (2, 32),
            "lokr_w2_b": (2, 4),
        }.items()
    },
    "PEFT's DoRA": {
        f"{LINEAR}.lora_A.weight": (3, 128),
        f"{LINEAR}.lora_B.weight": (128, 3),
        f"{LINEAR}.lora_magnitude_vector": (128,),
    },
    "biases": {f"{LINEAR}.diff_b": (128,), "diffusion_model.joint_blocks.0.x_block.mlp.fc1.diff_b": (512,)},
    "two updates of one layer": {
        f"{LINEAR}.lora_down.weight": (2, 128),
        f"{LINEAR}.lora_up.weight": (128, 2),
        f"{LINEAR}.hada_w1_a": (128, 2),
        f"{LINEAR}.hada_w1_b": (2, 128),
        f"{LINEAR}.hada_w2_a": (128, 2),
        f"{LINEAR}.hada_w2_b": (2, 128),
    },
    "LoCon": {f"{KERNEL}.lora_down.weight": (2, 16, 2, 2), f"{KERNEL}.lora_up.weight": (128, 2, 1, 1)},
    "LoCon with a core": {
        f"{KERNEL}.lora_down.weight": (2, 16, 1, 1),
        f"{KERNEL}.lora_mid.weight": (2, 2, 2, 2),
        f"{KERNEL}.lora_up.weight": (128, 2, 1, 1),
    },
    "LoHa with cores": {
        f"{KERNEL}.hada_{name}": shape
        for i in (1, 2)
        for name, shape in {f"w{i}_a": (2, 128), f"w{i}_b": (2, 16), f"t{i}": (2, 2, 2, 2)}.items()
    },
    "DoRA": {
        f"{LINEAR}.lora_down.weight": (2, 128),
        f"{LINEAR}.lora_up.weight": (128, 2),
        f"{LINEAR}.dora_scale": (128, 1),
    },
    "GLoRA": {
        f"{LINEAR}.{name}.weight": shape
        for name, shape in {"a1": (128, 2), "a2": (2, 128), "b1": (128, 2), "b2": (2, 128)}.items()
    },
    "OFT": {f"{LINEAR}.oft_blocks": (8, 16, 16)},
    "BOFT": {f"{LINEAR}.oft_blocks": (3, 8, 16, 16)},
    "difference": {f"{KERNEL}.diff": (128, 16, 2, 2), f"{KERNEL}.diff_b": (128,)},
    "norm": {f"{LINEAR}.w_norm": (128,), f"{LINEAR}.b_norm": (128,)},
    "other weights": {f"{LINEAR}.set_weight": (128, 128)},
    "control": {  # the host recognises Flux control adapters by the first two
        "img_in.lora_A.weight": (2, 16),
        "single_blocks.0.norm.key_norm.scale": (16,),
        "img_in.lora_B.weight": (128, 2),
    },
}


class World:
    """A network, its key map and good files. It is a class, because hypothesis prints its repr.

    Args:
        layers: beginnings of the keys to look for. The host's reader is slow for each of them. All by default.

    Attributes:
        model: the host's MODEL of a small SD3.
        network: its BaseModel.
        key_map: the host's map from LoRA keys to its weights.
        files: kind -> tensors.
    """

    def __init__(self, layers: tuple[str, ...] = ("",)) -> None:
        self.model = comfy_models.load("sd3")
        self.network = self.model.model
        every: dict[str, Any] = comfy.lora.model_lora_keys_unet(self.network, {})
        self.key_map = {key: target for key, target in every.items() if key.startswith(layers)}
        endings = tuple(f"joint_blocks.0.x_block.{name}" for name in ("attn.qkv", "mlp.fc1", "attn.proj"))
        generator = torch.Generator().manual_seed(0)
        self.files: dict[str, dict[str, Tensor]] = {"kohya": kohya("sd3", 1, rank=2, endings=endings, alpha=1.0)}
        for kind, shapes in SHAPES.items():
            self.files[kind] = {key: torch.randn(shape, generator=generator) / 10 for key, shape in shapes.items()}

    def __repr__(self) -> str:
        return "<world>"


def check_file(content: bytes, path: Path, world: World) -> None:
    """Write a file and check the law of the reader for it.

    Args:
        content: of the file.
        path: of the file.
        world: the network that it must fit.

    Raises:
        AssertionError: the refusal does not name the file, the update differs from the host's own, or it takes more memory than
            twice the file's numbers and the bytes that the report says.
        Exception: any other error of the reader.
    """
    path.write_bytes(content)
    weights = BaseWeights(world.model)
    try:
        adapter = read_lora(str(path), 0.8)
        updates, report = fit_adapter(adapter, world.network, world.key_map, weights)
    except ValueError as error:
        assert path.name in str(error)
        return
    assert adapter.kl_weight is None or adapter.kl_weight > 0
    assert report.applied
    bank = AdapterBank([updates], torch.float32)
    stored = sum(tensor.numel() for tensor in adapter.tensors.values()) * torch.float32.itemsize
    assert sum(parameter.nbytes for parameter in bank.parameters()) <= 2 * stored + report.bytes_said
    ours = changes(world.network, updates)
    assert all(bool(torch.isfinite(change).all()) for change in ours.values())
    try:
        hosts = host_changes(world.model, world.key_map, dict(adapter.tensors), 0.8)
    except (RuntimeError, IndexError, KeyError, TypeError, AttributeError):
        return  # the host fails on a part that we skip
    if any(key.endswith(MAGNITUDES) for key in adapter.tensors):
        return  # the host does not read them
    for name, change in ours.items():
        if name in hosts:
            scale = float(change.abs().max() + 1)
            assert torch.allclose(change, hosts[name], rtol=1e-4, atol=2e-5 * scale, equal_nan=True), name
    left_out = hosts.keys() - ours.keys()
    assert not left_out or report.misshapen or report.absent, left_out
