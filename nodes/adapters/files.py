"""LoRA files as the nodes pass them on: read and checked, not yet fitted to a model."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ...blending.kl_weights import parse_kl_weight
from ...blending.preference import AnyPreference
from ...blending.schedules import Coefficients, CoefficientSchedule
from ...blending.slots import Link, Slots, name_slots
from .headers import name_of, trained_scale

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of dtypes."""

ENDINGS = (".safetensors", ".sft")
"""Endings of the files that ComfyUI reads as safetensors."""


@dataclass(frozen=True, eq=False)
class RewardLoRA:
    """One adapter file and its strength.

    Args:
        name: shown to the artist; from the file's metadata or the file's name.
        file: the file's name, for messages.
        tensors: the file's content.
        kl_weight: the KL weight alpha of its training (reward units per nat), None if it is unknown.
        strength: factor on the whole update, or on that of the network only where ``strength_clip`` is given.
        metadata: the file's header.
        patches: the host's patches, by parameter, of an adapter that comes from a MODEL and not from a file.
        scales: factors of the training, of the network and of the text encoders, that are applied; None for those that are not.
        strength_clip: factor on the update of the text encoders, None for ``strength``.
    """

    name: str
    file: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    kl_weight: float | None
    strength: float
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    patches: Mapping[str, list[Any]] | None = field(default=None, repr=False)
    scales: tuple[float | None, ...] = (None, None)
    strength_clip: float | None = None

    @property
    def network_strength(self) -> float:
        """Factor on the update of the diffusion network."""
        return self.strength * (1.0 if self.scales[0] is None else self.scales[0])

    @property
    def text_strength(self) -> float:
        """Factor on the update of the text encoders."""
        strength = self.strength if self.strength_clip is None else self.strength_clip
        return strength * (1.0 if self.scales[1] is None else self.scales[1])

    @property
    def is_off(self) -> bool:
        """Whether all strengths are 0. Load LoRA leaves such a file alone; at one of them it still replaces weights."""
        return self.strength == 0 and self.strength_clip in (None, 0)

    @property
    def record(self) -> dict[str, Any]:
        """What images and files say about an adapter: name, file and strength, and that on the text encoders if it is another."""
        own = {} if self.strength_clip in (None, self.strength) else {"strength_clip": self.strength_clip}
        return {"name": self.name, "file": self.file, "strength": self.strength, **own}


@dataclass(frozen=True, eq=False)
class RewardLoRAs:
    """Adapters in the order of their preference weights.

    Args:
        adapters: in order.
        banks: a cache of `fitting.bank_patcher` for each model, as long as the model lives, so that a new preference
            reads, converts and moves nothing.
        slots: see `slots.Slots`; empty for a single loader without empty slots.
        crosses: cross adapters (`blending.cross`), which have no weight of their own. Their slots count as empty.
    """

    adapters: tuple[RewardLoRA, ...]
    banks: weakref.WeakKeyDictionary[Any, Any] = field(default_factory=weakref.WeakKeyDictionary, repr=False)
    slots: Slots = ()
    crosses: tuple[RewardLoRA, ...] = ()

    def __iter__(self) -> Iterator[RewardLoRA]:
        return iter(self.adapters)

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.adapters]

    @property
    def kl_weights(self) -> list[float | None]:
        return [adapter.kl_weight for adapter in self.adapters]

    @property
    def loaders(self) -> Slots:
        """`slots`, also where they are not given."""
        return self.slots or ((True,) * len(self.adapters),)

    @property
    def named_slots(self) -> Link:
        """The adapter's name in each slot of each loader, empty where it holds none."""
        return name_slots(self.loaders, self.names)

    def arrange(self, preference: AnyPreference) -> AnyPreference:
        """The preference with one weight per adapter; errors as `Preference.arranged`."""
        return preference.arranged(self.loaders, self.names)

    def coefficients(self, preference: AnyPreference) -> Coefficients | CoefficientSchedule:
        """The adapters' affine coefficients by a preference; errors as `Preference.arranged` and `Preference.coefficients`."""
        return self.arrange(preference).coefficients(self.names, self.kl_weights)


def read_lora(path: str, strength: float, as_trained: bool = False, strength_clip: float | None = None) -> RewardLoRA:
    """Read and check an adapter file.

    Args:
        path: a safetensors file, of one of `ENDINGS`.
        strength: factor on the whole update, finite.
        strength_clip: factor on the update of the text encoders, finite; None for ``strength``.
        as_trained: whether a factor alpha / r that only the header has is applied; ComfyUI leaves the factor out.

    Raises:
        ValueError: the file has none of `ENDINGS`, or is unreadable, truncated or without tensors; the strength is not finite;
            or the KL weight in the metadata is no number of at least 0. The numbers are checked when the adapter is fitted to
            a model, because only some of them may be used.
    """
    file = Path(path).name
    for number in (strength, strength_clip):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"The strength of {file} is {number}: it must be a finite number.")
    if not file.lower().endswith(ENDINGS):
        raise ValueError(
            f"{file} is not a .safetensors file (or .sft, which is the same): files of other endings may be pickles, which can "
            "run code, and are not opened. Convert it to .safetensors first."
        )
    try:
        tensors, metadata = _read_tensors(path)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors (truncated or damaged?): {error}") from error
    if not tensors:
        raise ValueError(f"{file} holds no tensors: it is not an adapter.")
    name = name_of(metadata, Path(path).stem)
    scales = tuple(trained_scale(metadata, tensors, text=text) if as_trained else None for text in (False, True))
    return RewardLoRA(name, file, tensors, _kl_weight(file, metadata), strength, metadata, None, scales, strength_clip)


def _read_tensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file's metadata, and its tensors as views into one copy of the file in memory.

    safetensors checks the file. Its own tensors are not used for two reasons. They are views into the file itself, so they
    change when another program rewrites the file. And each tensor that is read leaks 64 bytes (safetensors 0.8.0).
    """
    with safetensors.safe_open(path, framework="pt"):
        pass  # checks the whole header: sizes, offsets, dtypes
    with Path(path).open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8).decode())
        content = torch.empty(Path(path).stat().st_size - begin, dtype=torch.uint8)
        if file.readinto(content.numpy().data) != len(content):
            raise ValueError("it became shorter while it was read")
    metadata = header.pop("__metadata__", None) or {}
    tensors: dict[str, Tensor] = {}
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        numbers = content[start:end]
        if start % dtype.itemsize:  # a view has to begin at a multiple of the item size
            numbers = numbers.clone()
        tensors[key] = numbers.view(dtype).reshape(entry["shape"])
    return tensors, metadata


def _kl_weight(file: str, metadata: Mapping[str, str]) -> float | None:
    try:
        return parse_kl_weight(metadata.get("diffusion_blend.kl_weight"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
