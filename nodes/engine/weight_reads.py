"""Which layers' weights a call reads, though it does not call the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def weights_read(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Collect the names of the layers whose weight is read inside the block.

    Args:
        layers: by name. Each is of a class that records the reads, until the end of the block.
    """
    read: set[str] = set()
    kinds = {name: type(layer) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__class__ = _recording(kinds[name], name, read)
        yield read
    finally:
        for name, layer in layers.items():
            layer.__class__ = kinds[name]


def _recording(kind: Any, name: str, read: set[str]) -> type:
    def look_up(layer: Any, attribute: str) -> Any:
        if attribute == "weight":
            read.add(name)
        return kind.__getattribute__(layer, attribute)

    return type(kind.__name__, (kind,), {"__getattribute__": look_up})
