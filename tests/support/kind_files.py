"""Adapter files of one kind of update each, over the layers of any small checkpoint, in the host's generic naming.

Imported only where a host is on ``sys.path``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Maker = Callable[[Tensor, torch.Generator], Tensors]
"""The tensors of one layer by their endings, from the layer's weight."""


def _normal(generator: torch.Generator, *shape: int, size: float) -> Tensor:
    return torch.randn(*shape, generator=generator) * size


def _sides(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def lora(weight: Tensor, generator: torch.Generator) -> Tensors:
    inputs = weight[0].numel()
    return {
        "lora_up.weight": _normal(generator, weight.shape[0], 4, *[1] * (weight.ndim - 2), size=0.2),
        "lora_down.weight": _normal(generator, 4, *weight.shape[1:], size=1 / math.sqrt(inputs)),
        "alpha": torch.tensor(3.0),
    }


def tucker(weight: Tensor, generator: torch.Generator) -> Tensors:
    one = [1] * (weight.ndim - 2)
    return {
        "lora_up.weight": _normal(generator, weight.shape[0], 4, *one, size=0.2),
        "lora_mid.weight": _normal(generator, 4, 4, *weight.shape[2:], size=0.3),
        "lora_down.weight": _normal(generator, 4, weight.shape[1], *one, size=1 / math.sqrt(weight.shape[1])),
    }


def _loha(weight: Tensor, generator: torch.Generator, ranks: tuple[int, int]) -> Tensors:
    rows, columns = _sides(weight)
    factors: Tensors = {"alpha": torch.tensor(float(ranks[0]))}
    for number, rank in enumerate(ranks, 1):
        factors[f"hada_w{number}_a"] = _normal(generator, rows, rank, size=0.5 / math.sqrt(rank))
        factors[f"hada_w{number}_b"] = _normal(generator, rank, columns, size=columns**-0.25)
    return factors


def loha(weight: Tensor, generator: torch.Generator) -> Tensors:
    return _loha(weight, generator, (3, 5))


def loha_of_full_rank(weight: Tensor, generator: torch.Generator) -> Tensors:
    return _loha(weight, generator, (20, 24))


def lokr_whole(weight: Tensor, generator: torch.Generator) -> Tensors:
    rows, columns, *kernel = weight.shape
    rest = (rows // 4, columns // 4, *kernel)
    return {
        "lokr_w1": _normal(generator, 4, 4, size=0.4),
        "lokr_w2": _normal(generator, *rest, size=1 / math.sqrt(columns)),
        "alpha": torch.tensor(math.inf),  # as trainers write it; no factored part uses it
    }


def lokr_factored(weight: Tensor, generator: torch.Generator) -> Tensors:
    rows, columns = weight.shape[0] // 8, weight.shape[1] // 8
    return {
        "lokr_w1": _normal(generator, 8, 8, size=0.3),
        "lokr_w2_a": _normal(generator, rows, 4, size=0.3),
        "lokr_w2_b": _normal(generator, 4, columns * weight.shape[2:].numel(), size=1 / math.sqrt(columns)),
        "alpha": torch.tensor(4.0),
    }


def full_difference(weight: Tensor, generator: torch.Generator) -> Tensors:
    return {"diff": _normal(generator, *weight.shape, size=0.2 / math.sqrt(weight[0].numel()))}


def replaced(weight: Tensor, generator: torch.Generator) -> Tensors:
    return {"set_weight": weight + full_difference(weight, generator)["diff"]}


def dora(weight: Tensor, generator: torch.Generator) -> Tensors:
    norm = weight.flatten(1).norm(dim=1)
    scale = norm * (1 + 0.2 * torch.randn(len(norm), generator=generator))
    return lora(weight, generator) | {"dora_scale": scale.view(-1, *[1] * (weight.ndim - 1))}


def oft(weight: Tensor, generator: torch.Generator) -> Tensors:
    size = weight.shape[0] // 8
    return {"oft_blocks": _normal(generator, 8, size, size, size=0.1 / math.sqrt(size)), "alpha": torch.tensor(0.0)}


def boft(weight: Tensor, generator: torch.Generator) -> Tensors:
    blocks = _normal(generator, 3, weight.shape[0] // 8, 8, 8, size=0.03)
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}


def glora(weight: Tensor, generator: torch.Generator) -> Tensors:
    rows, columns = _sides(weight)
    shapes = {"a1": (weight.shape[1], 4), "a2": (4, weight.shape[1]), "b1": (rows, 4), "b2": (4, columns)}
    return {
        f"{name}.weight": _normal(generator, *shape, size=0.3 / math.sqrt(shape[1])) for name, shape in shapes.items()
    }


def difference_of_a_vector(weight: Tensor, generator: torch.Generator) -> Tensors:
    return {"w_norm": _normal(generator, *weight.shape, size=0.1)}


MATRICES: dict[str, Maker] = {
    "LoRA": lora,
    "LoHa": loha,
    "LoHa of full rank": loha_of_full_rank,
    "LoKr, whole": lokr_whole,
    "LoKr, factored": lokr_factored,
    "full difference": full_difference,
    "weights that replace": replaced,
    "DoRA": dora,
    "OFT": oft,
    "BOFT": boft,
    "GLoRA": glora,
}
"""Kinds for Linear layers and convolutions."""

KINDS = (*MATRICES, "Tucker core", "bias", "norm", "parameter of no layer")


def layers(weights: Mapping[str, Tensor], least: int = 64) -> dict[str, Tensor]:
    """Return the matrices and kernels whose sides the factors of every kind divide."""
    found = {}
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.ndim > 1 and not any(side % least for side in weight.shape[:2]):
            found[name.removesuffix(".weight")] = weight
    return found


def file_of(kind: str, weights: Mapping[str, Tensor], seed: int = 1) -> Tensors:
    """Make the tensors of a file of one kind; empty where the checkpoint has no such part.

    Args:
        kind: one of `KINDS`.
        weights: of the diffusion network, without a prefix.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: Mapping[str, Tensor]
    if kind in MATRICES:
        every = layers(weights)
        parts, make = {name: every[name] for name in list(every)[seed % 2 :: 2]}, MATRICES[kind]
    elif kind == "Tucker core":
        parts, make = {name: weight for name, weight in layers(weights).items() if weight.shape[2:].numel() > 1}, tucker
    elif kind == "bias":
        parts = {name.removesuffix(".bias"): value for name, value in weights.items() if name.endswith(".bias")}
        return {
            f"diffusion_model.{name}.diff_b": _normal(generator, *value.shape, size=0.1)
            for name, value in parts.items()
            if f"{name}.weight" in weights
        }
    elif kind == "norm":
        ends = ".weight"
        parts = {name.removesuffix(ends): w for name, w in weights.items() if name.endswith(ends) and w.ndim == 1}
        make = difference_of_a_vector
    else:
        others = {name: value for name, value in weights.items() if not name.endswith((".weight", ".bias"))}
        return {f"diffusion_model.{n}.diff": _normal(generator, *v.shape, size=0.1) for n, v in others.items()}
    return {
        f"diffusion_model.{name}.{ending}": tensor
        for name, weight in parts.items()
        for ending, tensor in make(weight, generator).items()
    }


def saved(folder: Path, name: str, tensors: Tensors) -> Any:
    """Write a file and load it with Load Reward LoRAs."""
    from comfy_adapters import write
    from comfy_world import load_loras

    write(folder, name, tensors)
    return load_loras([f"{name}.safetensors"])
