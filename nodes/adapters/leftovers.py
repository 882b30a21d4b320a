"""Keys of an adapter file that belong to a weight of the network and have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .endings import BIASES, WHOLE, stem
from .targets import parameter_of

SILENT = (".alpha", ".reshape_weight")
"""Endings of tensors that the host reads as numbers."""


def bias_of(target: Any) -> str | None:
    """Return the bias that belongs to a target of the host's key map: none to a slice, or to what is no layer's weight."""
    whole = isinstance(target, str) and target.endswith(".weight")
    return f"{target.removesuffix('.weight')}.bias" if whole else None


def without_homeless(
    patches: Mapping[Any, Any], tensors: Mapping[str, Tensor], names: Mapping[str, Any]
) -> dict[Any, Any]:
    """Return the host's patches without those of biases that no weight has: the host gives them names such as ``().bias``.

    Args:
        patches: the host's, by target.
        tensors: of the file.
        names: names of layers in the file -> the host's targets.
    """
    homeless = {
        id(tensor)
        for key, tensor in tensors.items()
        if key.endswith(BIASES) and stem(key) in names and bias_of(names[stem(key)]) is None
    }
    return {target: patch for target, patch in patches.items() if not homeless & _parts(patch)}


def live_keys(tensors: Mapping[str, Tensor], patches: Mapping[Any, Any]) -> set[str]:
    """The keys of the tensors that the host's patches hold."""
    parts = set().union(*map(_parts, patches.values()))
    return {key for key, tensor in tensors.items() if id(tensor) in parts} - set(_unused_halves(tensors))


def leftovers(
    tensors: Mapping[str, Tensor], names: Mapping[str, Any], patches: Mapping[Any, Any], live: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sort the keys that have no effect.

    Args:
        tensors: of the file, those that belong to the named weights.
        names: names of layers in the file -> the host's targets.
        patches: the host's, by target.
        live: `live_keys`.

    Returns:
        The first keys of updates of a weight that has another one, and the other keys from which the host reads nothing.
    """
    changed = {parameter_of(target) for target in patches}
    second = [key for key in _unused_halves(tensors) if key in tensors]
    second += [
        key
        for key in tensors
        if key not in live and key.endswith((*WHOLE, *BIASES)) and _parameter(key, names) in changed
    ]
    second = list(dict.fromkeys(second))
    said = {stem(key) for key in second}
    kept = {stem(key) for key in live}
    unread = [
        key
        for key in tensors
        if key not in live and stem(key) not in said and not (key.endswith(SILENT) and stem(key) in kept)
    ]
    return tuple(second), tuple(key for key in unread if not key.endswith(".alpha"))


def _parameter(key: str, names: Mapping[str, Any]) -> str | None:
    target = names.get(stem(key))
    if target is None:
        return None
    return bias_of(target) if key.endswith(BIASES) else parameter_of(target)


def _unused_halves(tensors: Iterable[str]) -> list[str]:
    """Keys of a LoKr's factor in parts where the file also holds it whole."""
    return [f"{stem(key)}.{part}_a" for key in tensors for part in ("lokr_w1", "lokr_w2") if key.endswith(f".{part}")]


def _parts(patch: Any) -> set[int]:
    """The identities of a patch's tensors."""
    parts = patch[-1] if isinstance(patch, tuple) else getattr(patch, "weights", ())
    return {id(part) for part in parts if isinstance(part, Tensor)}
