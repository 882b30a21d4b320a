"""The content of an adapter file as ComfyUI's own reader sees it: which tensors belong to which weight of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor

from .endings import BIASES, MAGNITUDES, missing_half, stem
from .files import RewardLoRA
from .leftovers import leftovers, live_keys, without_homeless
from .spellings import key_maps
from .targets import parameter_of

HOST_FAILURES = (KeyError, IndexError, AttributeError, TypeError, RuntimeError)
"""What the host's reader raises on tensors that do not fit together."""


@dataclass(frozen=True, eq=False)
class Content:
    """An adapter file, read for one network.

    Args:
        patches: the host's targets and patches.
        magnitudes: the host's targets -> key and magnitude of a DoRA in PEFT's spelling.
        unused: keys that belong to no weight of the network.
        second: keys of second updates of a weight, of which the host applies one.
        unread: keys of the network's weights that the host reads no update from.
    """

    patches: Mapping[Any, Any]
    magnitudes: Mapping[Any, tuple[str, Tensor]]
    unused: frozenset[str]
    second: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_content(adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any]) -> Content:
    """Let the host read a file.

    Names that only this extension maps count where the host knows none for the same weight.

    Args:
        adapter: the file.
        network: the host's BaseModel.
        hosts: ``comfy.lora.model_lora_keys_unet`` of the network.

    Raises:
        ValueError: the host fails on the file: half an update without which it cannot go on, an alpha of several numbers.
    """
    tensors = converted(adapter)
    known, ours = key_maps(network, hosts, {stem(key) for key in tensors})
    patches, used = read_patches(adapter, tensors, known)
    if ours:
        more, beside = read_patches(adapter, tensors, ours)
        taken = {parameter_of(target) for target in patches}
        patches |= {target: patch for target, patch in more.items() if parameter_of(target) not in taken}
        used |= beside
    names = known | ours
    live = live_keys(used, patches)
    layers = {stem(key) for key in live if not key.endswith(BIASES)}
    magnitudes = {
        names[stem(key)]: (key, tensor)
        for key, tensor in used.items()
        if key.endswith(MAGNITUDES) and stem(key) in layers
    }
    live |= {key for key, _ in magnitudes.values()}  # which the host does not read
    second, unread = leftovers(used, names, patches, live)
    return Content(patches, magnitudes, frozenset(tensors.keys() - used.keys()), second, unread)


def read_patches(
    adapter: RewardLoRA, tensors: Mapping[str, Tensor], names: Mapping[str, Any]
) -> tuple[dict[Any, Any], dict[str, Tensor]]:
    """Let the host read the part of a file that belongs to the named weights.

    Args:
        adapter: the file.
        tensors: `converted` of the file.
        names: names of layers in the file -> the host's targets.

    Returns:
        The host's patches by target, and the tensors that belong to the named weights.

    Raises:
        ValueError: as `read_content`.
    """
    used = {key: tensor for key, tensor in tensors.items() if stem(key) in names or key in names}
    wanted = {stem(key) for key in used} | used.keys()
    # In the host's order, because of two updates of one weight it takes the last.
    order = {name: target for name, target in names.items() if name in wanted}
    try:
        patches = comfy.lora.load_lora(used, order, log_missing=False)
    except HOST_FAILURES as error:
        why = _what_is_wrong(used) or f"the host cannot read it ({error}); the file is damaged."
        raise ValueError(f"{adapter.file}: {why}") from error
    patches = without_homeless(patches, used, order)
    live = live_keys(used, patches)
    # The host reads the second core of a LoHa only behind the first.
    cores = {key for key in used if key.endswith(".hada_t2") and f"{stem(key)}.hada_w1_a" in live}
    incomplete = missing_half(live | cores, used)
    if incomplete:  # the host reads the rest, and fails where it patches
        raise ValueError(f"{adapter.file}: {incomplete}")
    return patches, used


def converted(adapter: RewardLoRA) -> dict[str, Tensor]:
    """Return a file's tensors under the keys that the host gives them.

    Raises:
        ValueError: the host's conversion fails.
    """
    try:
        return comfy.lora_convert.convert_lora(dict(adapter.tensors))
    except HOST_FAILURES as error:
        raise ValueError(f"{adapter.file}: the host cannot read it ({error}); the file is incomplete.") from error


def _what_is_wrong(tensors: Mapping[str, Tensor]) -> str:
    """What breaks the host's reader: half an update, or an alpha of several numbers. Empty where it is something else."""
    for key, tensor in tensors.items():
        if key.endswith(".alpha") and tensor.numel() != 1:
            return f"{key} has shape {list(tensor.shape)}; alpha is a single number."
    return missing_half(tensors, tensors)
