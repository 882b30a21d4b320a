"""A network's modules by name, from one walk that is repeated only when the tree has changed.

A walk over the modules takes milliseconds, and a run needs all of them several times: to hook layers, to look for compiled code,
and to see what the network holds from call to call.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

_CLEARS = re.compile(r"(clear|reset)_\w*cache")


class ModuleTree:
    """The modules of one network as they were at a walk. They are not kept alive.

    Args:
        network: the host's BaseModel.
    """

    def __init__(self, network: nn.Module) -> None:
        named = dict(network.named_modules(remove_duplicate=False))
        self._refs = {name: ref(module) for name, module in named.items()}
        self._children = [(ref(module), tuple(map(id, module._modules.values()))) for module in named.values()]
        # The layers' attributes belong to the host's loader, and torch's own modules hold no state.
        self._stateful = [
            name
            for name, module in named.items()
            if module is not network
            and not type(module).__module__.startswith("torch.")
            and not hasattr(module, "comfy_cast_weights")
        ]

    def is_current(self) -> bool:
        """Return whether every module still has the children that it had."""
        for reference, children in self._children:
            module = reference()
            if module is None or tuple(map(id, module._modules.values())) != children:
                return False
        return True

    def named(self) -> dict[str, nn.Module]:
        """The modules by name."""
        found = {name: reference() for name, reference in self._refs.items()}
        return {name: module for name, module in found.items() if module is not None}

    def stateful(self) -> list[nn.Module]:
        """The modules that may hold state from call to call, once each."""
        modules = [self._refs[name]() for name in self._stateful]
        return list({id(module): module for module in modules if module is not None}.values())

    def compiled(self) -> str | None:
        """The name of a part that torch.compile has compiled, or None."""
        for name, reference in self._refs.items():
            module: Any = reference()
            # torch marks modules compiled in place by the first attribute; others wrap the original as the second.
            if module is not None and (module._compiled_call_impl is not None or "_orig_mod" in module._modules):
                return name
        return None


class ModuleTrees:
    """The trees of the networks that share a bank of adapters: one, or one for each device."""

    def __init__(self) -> None:
        self._trees: WeakKeyDictionary[nn.Module, ModuleTree] = WeakKeyDictionary()

    def of(self, network: nn.Module) -> ModuleTree:
        """Return the tree of a network, from an earlier walk where it still holds."""
        tree = self._trees.get(network)
        if tree is None or not tree.is_current():
            tree = self._trees[network] = ModuleTree(network)
        return tree


def clearing_methods(module: nn.Module) -> list[Callable[[], Any]]:
    """The methods of a module that empty a cache."""
    methods = [getattr(module, name) for name in _clearing_names(type(module))]
    return [method for method in methods if callable(method) and not inspect.signature(method).parameters]


@lru_cache(maxsize=1024)
def _clearing_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if _CLEARS.fullmatch(name))
