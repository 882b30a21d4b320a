"""Adapters and arguments as users of the pipelines give them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .adapter_files import Adapter, read_adapter

Adapters = Mapping[str, Any] | Sequence[Any]
"""Name -> file, folder, tensors or peft model (see `adapter_files.open_adapter`); or a list of files, which are named by their
stems; or adapters that are fitted."""

_GIVE = "give a mapping of names to files, for example {'aesthetic': 'aesthetic.safetensors'}, or a list of files"

_DEPRECATED = ("callback", "callback_steps")
"""Arguments that diffusers' pipelines read from their ``**kwargs``."""


def check_names(pipe: Any, given: Iterable[str], own: Iterable[str]) -> None:
    """Check the names of arguments for typing errors, because pipelines with ``**kwargs`` ignore names that they do not know.

    Args:
        pipe: a diffusers pipeline.
        given: the names of the arguments.
        own: further names that are right.

    Raises:
        TypeError: a name is unknown and nearly a known one.
    """
    known = [*own, *inspect.signature(pipe.__call__).parameters, *_DEPRECATED]
    for name in given:
        near = difflib.get_close_matches(name, known, 1, 0.6)
        if name not in known and near:
            raise TypeError(f"{name} is no argument of {type(pipe).__name__}: did you mean {near[0]}?")


def check_counts(**counts: Any) -> None:
    """Check whole numbers that a user gives.

    Args:
        counts: by name; ``seed`` and ``draw_seed`` may be 0, the others count at least one thing.

    Raises:
        TypeError: no whole number.
        ValueError: too small.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} is {value!r}: it must be a whole number")
        least = 0 if name.endswith("seed") else 1
        if int(value) < least:
            raise ValueError(f"{name} is {value}: it must be a whole number of at least {least}")


def fit(network: nn.Module, adapters: Adapters) -> list[Adapter]:
    """Read adapters and fit them to a network; fitted ones are returned as they are.

    Raises:
        TypeError: neither a mapping nor a list, or another thing in the list.
        ValueError: there is no adapter, two have the same name, or one does not fit.
    """
    if isinstance(adapters, Mapping):
        found = [read_adapter(str(name), source, network) for name, source in adapters.items()]
    elif isinstance(adapters, Sequence) and not isinstance(adapters, str | bytes):
        found = [_listed_adapter(network, adapter) for adapter in adapters]
    else:
        raise TypeError(f"adapters is {adapters!r}: {_GIVE}")
    if not found:
        raise ValueError(f"there is no adapter to blend: {_GIVE}")
    names = [adapter.name for adapter in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two adapters have the name {twice[0]!r}: give a mapping with a name for each")
    return found


def _listed_adapter(network: nn.Module, adapter: Any) -> Adapter:
    if isinstance(adapter, Adapter):
        return adapter
    if isinstance(adapter, str | Path):
        return read_adapter(Path(adapter).stem, adapter, network)
    raise TypeError(f"adapters has a {type(adapter).__name__} in its list: {_GIVE}")
