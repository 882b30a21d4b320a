"""LoRA files as the nodes pass them on: read with the host's reader, checked whole, not yet fitted to a model."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.utils
import safetensors
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RewardLoRA:
    """One adapter file and how strongly it counts.

    Args:
        name: what the artist sees, from the file's metadata or its name.
        file: the file's name, for messages.
        tensors: the file's content.
        kl_weight: the KL weight alpha it was trained with (reward units per nat), None if the file does not say.
        strength: factor on the whole update.
    """

    name: str
    file: str
    tensors: Mapping[str, Tensor]
    kl_weight: float | None
    strength: float


@dataclass(frozen=True, eq=False)
class RewardLoRAs:
    """Adapters in the order of their preference weights.

    Args:
        adapters: in order.
        banks: what `fitting.fit` made of them for each model, kept as long as the model lives, so that a new preference
            reads, converts and moves nothing.
    """

    adapters: tuple[RewardLoRA, ...]
    banks: weakref.WeakKeyDictionary[Any, Any] = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    def __iter__(self) -> Iterator[RewardLoRA]:
        return iter(self.adapters)

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.adapters]

    @property
    def kl_weights(self) -> list[float | None]:
        return [adapter.kl_weight for adapter in self.adapters]


def read_lora(path: str, strength: float) -> RewardLoRA:
    """Read and check an adapter file.

    Args:
        path: a ``.safetensors`` file.
        strength: factor on the whole update, finite.

    Raises:
        ValueError: not a ``.safetensors`` file, unreadable or truncated, no tensors, a tensor that is not floating point
            or holds NaN or infinity, a strength that is not finite, or a KL weight in the metadata that is no number
            above 0.
    """
    file = Path(path).name
    if not math.isfinite(strength):
        raise ValueError(f"The strength of {file} is {strength}: it must be a finite number.")
    if Path(path).suffix.lower() != ".safetensors":
        raise ValueError(
            f"{file} is not a .safetensors file: other formats can run code and are not read. Convert it first."
        )
    try:
        tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors (truncated or damaged?): {error}") from error
    _check_tensors(file, tensors)
    metadata = metadata or {}
    name = metadata.get("diffusion_blend.reward") or Path(path).stem
    return RewardLoRA(name, file, tensors, _kl_weight(file, metadata), strength)


def _check_tensors(file: str, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ValueError(f"{file} holds no tensors: it is not an adapter.")
    for key, tensor in tensors.items():
        if key.endswith("reshape_weight"):
            continue  # a shape, refused by name when the adapter is fitted to a model
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {key} has dtype {tensor.dtype}; an adapter's weights are floating point.")
        if not bool(torch.isfinite(tensor if tensor.dtype.itemsize > 1 else tensor.float()).all()):
            raise ValueError(
                f"{file}: {key} holds NaN or infinite numbers; the file is damaged or its training diverged."
            )


def _kl_weight(file: str, metadata: Mapping[str, str]) -> float | None:
    text = metadata.get("diffusion_blend.kl_weight")
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"{file}: its metadata give diffusion_blend.kl_weight as {text!r}; it must be a number above 0."
        )
    return value
