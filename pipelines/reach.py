"""Whether adapters reach their layers: projections that a network computes in one, and layers that it does not call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..blending.layers import layer_shape
from ..blending.side_path import SidePath
from ..blending.updates import Slice
from .adapter_files import Updates

logger = logging.getLogger("diffusion_blend")

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Name of a fused projection (``fuse_qkv_projections`` of diffusers) -> the projections whose outputs it has, in order."""


def fused_parts(network: nn.Module) -> dict[str, tuple[str, int, int]]:
    """The projections that a network has in a fused one, too.

    Args:
        network: a UNet or a transformer.

    Returns:
        Name of a projection -> name of the fused one, and the projection's first output and number of outputs there.
    """
    names = {name for name, _ in network.named_modules()}
    found: dict[str, tuple[str, int, int]] = {}
    for fused in names:
        prefix, last = fused[: fused.rfind(".") + 1], fused.rpartition(".")[2]
        parts = [prefix + part for part in _FUSED.get(last, ())]
        if not parts or not names.issuperset(parts):
            continue
        start = 0
        for part in parts:
            rows = layer_shape(network, part)[0]
            found[part] = fused, start, rows
            start += rows
    return found


def with_fused(update: Updates, parts: dict[str, tuple[str, int, int]]) -> Updates:
    """Updates that reach the network whether it calls a projection or the fused one, which never run both.

    Which one runs is not asked: diffusers' own mark of it stays when the fusion is undone.

    Args:
        update: by layer.
        parts: of `fused_parts`.
    """
    result = {name: list(updates) for name, updates in update.items()}
    for name, updates in update.items():
        if name in parts:
            fused, start, rows = parts[name]
            result.setdefault(fused, []).extend(Slice(own, 0, start, rows) for own in updates)
    return result


def reach_check(path: SidePath, updates: Sequence[Mapping[str, Any]], fused: Mapping[str, str]) -> Callable[[], None]:
    """Return a function that looks after the network's first call whether every adapted layer was reached.

    Args:
        path: that is installed.
        updates: of each adapter, without those of fused projections.
        fused: name of a projection -> name of the fused one.

    Returns:
        The function. It warns of layers that were not called, and raises RuntimeError if none was.
    """
    layers, checked = {name for update in updates for name in update}, False

    def check() -> None:
        nonlocal checked
        if checked:
            return
        checked = True
        if layers and not path.any_called():
            raise RuntimeError(
                f"none of the adapters' {len(layers)} layers was called, so the result would be the base model's: something "
                "replaces or compiles the network's code. Undo that, or load the adapter by the pipeline's load_lora_weights"
            )
        bypassed = set(path.bypassed())
        missed = sorted(name for name in layers & bypassed if fused.get(name, name) in bypassed)
        if missed:
            logger.warning(
                "%d of the adapters' layers were not called, although the module around them was, so the adapters have no "
                "effect there: %s. That is right for inputs that this call does not have; otherwise an attention processor or "
                "a kernel replaces these layers",
                len(missed),
                ", ".join(missed[:5]) + (", ..." if len(missed) > 5 else ""),
            )

    return check
