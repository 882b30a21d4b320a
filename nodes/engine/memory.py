"""State that a network holds from one call to the next: each row of gates gets its own, and none stays behind.

Some networks hold keys and values of the prompt, keyed on the prompt alone. Such a cache is right only while the weights stay the
same, and each row of gates stands for other weights. What a module, or another node's patch, changes on itself during a call is
found by comparing its attributes before and after. It is stored for the call's rows, and the module gets back what it had.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from .module_tree import clearing_methods

MOST_ROWS = 16
"""Rows whose state is held. A preference that moves over the run has other rows at every step."""

CALLS_WITH_A_WALK = 2
"""Calls of the same rows for which all modules are looked at. A cache is filled in the first one, and used in the second."""

DEEPEST = 6
"""Lists and dicts inside one another, at most."""

MOST_WALKS = 24
"""Such calls in a run, at most."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# The host's loader marks modules whose weights it has moved or patched, also in the middle of a run.
_OF_THE_LOADER = re.compile(r".*comfy|_v(_|$)|_pin|seed_key$")
_DATA = (Tensor, list, dict, tuple, str, int, float, type(None))

Frozen = tuple[Any, Any]
"""A value, and the frozen parts of a list or dict (None for other values)."""

Attributes = dict[str, Any]
"""What a module or a patch holds, by name."""


class NetworkMemory:
    """The state of one network's modules, for one run.

    A look at all modules takes a millisecond. So it is made at the first calls only, and later calls look at the modules whose
    attributes changed in one of them. The end of the run looks at all modules again.

    Args:
        modules: the modules that may hold state.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = [vars(module) for module in modules]
        self._start = [_frozen(holder) for holder in self._modules]
        self._clears = [method for module in modules for method in clearing_methods(module)]
        self._changing: dict[int, Attributes] = {}  # by the id of the attributes
        self._calls: Counter[Hashable] = Counter()
        self._states: OrderedDict[Hashable, list[tuple[Attributes, dict[str, Frozen]]]] = OrderedDict()

    @contextmanager
    def of(self, rows: Hashable, patches: Iterable[Any] = ()) -> Iterator[None]:
        """Run the network's call inside the block with the state that the same rows left.

        Args:
            rows: the gates of the call.
            patches: other nodes' patches in the call.
        """
        is_early = self._calls[rows] < CALLS_WITH_A_WALK and self._calls.total() < MOST_WALKS
        holders = [*(self._modules if is_early else self._changing.values()), *_holders_among(patches)]
        self._calls[rows] += 1
        before = [_frozen(holder) for holder in holders]
        try:
            if rows in self._states:
                for holder, attributes in self._states[rows]:
                    _restore(holder, attributes)
            else:
                self._start_empty(holders)
            yield
            changed = [(holder, _changes(holder, own)) for holder, own in zip(holders, before, strict=True)]
            self._store(rows, [(holder, attributes) for holder, attributes in changed if attributes])
        finally:
            for holder, own in zip(holders, before, strict=True):
                _undo(holder, own)

    def close(self) -> None:
        """Give every module back the attributes that it had at the start of the run."""
        for holder, own in zip(self._modules, self._start, strict=True):
            _undo(holder, own)

    def _store(self, rows: Hashable, changed: list[tuple[Attributes, dict[str, Frozen]]]) -> None:
        self._states[rows] = changed
        self._states.move_to_end(rows)
        if len(self._states) > MOST_ROWS:
            self._states.popitem(last=False)
        known = {id(holder) for holder in self._modules}
        self._changing |= {id(holder): holder for holder, _ in changed if id(holder) in known}

    def _start_empty(self, holders: list[Attributes]) -> None:
        """Empty the caches, because the calls of the plain model filled them by the plain model's weights."""
        for clear in self._clears:
            clear()
        for holder in holders:
            for name in _names(holder):
                value = holder[name]
                if "cache" in name.lower() and type(value) in (list, dict) and _holds_tensors(value):
                    holder[name] = type(value)()


def _holders_among(patches: Iterable[Any]) -> list[Attributes]:
    """The attributes of the patches that are objects, once each."""
    owners = {id(owner): owner for patch in patches for owner in [getattr(patch, "__self__", patch)]}
    return [
        vars(owner)
        for owner in owners.values()
        if hasattr(owner, "__dict__")
        and not isinstance(owner, (nn.Module, FunctionType, type))
        and not hasattr(owner, "model_options")  # the host's own objects
    ]


def _names(holder: Attributes) -> list[str]:
    own = holder.keys() - _OF_EVERY_MODULE
    return [name for name in own if isinstance(holder[name], _DATA) and _may_change(name)]


@lru_cache(maxsize=4096)
def _may_change(name: str) -> bool:
    return not _OF_THE_LOADER.match(name)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return any(map(_holds_tensors, value.values())) if isinstance(value, dict) else isinstance(value, Tensor)


def _frozen(holder: Attributes) -> dict[str, Frozen]:
    return {name: _freeze(holder[name]) for name in _names(holder)}


def _freeze(value: Any, depth: int = 0) -> Frozen:
    if depth < DEEPEST and type(value) is dict:
        return value, {key: _freeze(part, depth + 1) for key, part in value.items()}
    if depth < DEEPEST and type(value) is list:
        return value, [_freeze(part, depth + 1) for part in value]
    return value, None


def _is_same(frozen: Frozen, value: Any) -> bool:
    held, parts = frozen
    if value is not held:
        return False
    if parts is None:
        return True
    if isinstance(parts, dict):
        return parts.keys() == value.keys() and all(_is_same(part, value[key]) for key, part in parts.items())
    return len(parts) == len(value) and all(map(_is_same, parts, value))


def _thaw(frozen: Frozen) -> Any:
    """The value, with the contents that it had when it was frozen."""
    value, parts = frozen
    if isinstance(parts, dict):
        contents = {key: _thaw(part) for key, part in parts.items()}
        value.clear()
        value.update(contents)
    elif parts is not None:
        value[:] = [_thaw(part) for part in parts]
    return value


def _changes(holder: Attributes, before: dict[str, Frozen]) -> dict[str, Frozen]:
    """The attributes that are not as before, frozen, in copies of their containers, which the network goes on to fill."""
    return {
        name: _freeze(_copied(holder[name]))
        for name in _names(holder)
        if name not in before or not _is_same(before[name], holder[name])
    }


def _copied(value: Any, depth: int = 0) -> Any:
    if depth < DEEPEST and type(value) is dict:
        return {key: _copied(part, depth + 1) for key, part in value.items()}
    return [_copied(part, depth + 1) for part in value] if depth < DEEPEST and type(value) is list else value


def _restore(holder: Attributes, attributes: dict[str, Frozen]) -> None:
    for name, frozen in attributes.items():
        holder[name] = _copied(_thaw(frozen))


def _undo(holder: Attributes, before: dict[str, Frozen]) -> None:
    """Give a holder back the attributes that it had."""
    for name in _names(holder):
        if name not in before:
            del holder[name]
    for name, frozen in before.items():
        if name not in holder or not _is_same(frozen, holder[name]):
            holder[name] = _thaw(frozen)
