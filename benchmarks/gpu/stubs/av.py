"""A stub of PyAV, so that the host can be imported on a machine without it. Nothing that reads or writes video works.

The host imports ``av`` and some of its submodules at its start, and uses them for video and audio only. PyAV's wheel is too
large for the packed folder. ``run.sh`` puts this folder on the path only where the real package is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__path__: list[str] = []  # makes this module a package, so that its submodules are looked for
__version__ = "0.stub"


class Absent:
    """Each name of PyAV. It can be compared with and subclassed, but not made."""

    def __init__(self, *_args: object, **_options: object) -> None:
        raise RuntimeError("this machine has only the benchmark's stub of av: install av to read or write video")


def __getattr__(name: str) -> type[Absent]:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Absent,), {})


class Submodules(MetaPathFinder, Loader):
    """Finds every submodule of ``av`` and gives it the same names."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("av.") else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = __getattr__


sys.meta_path.append(Submodules())
