"""Child processes that are machines of their own: network, host name and table of processes, with the folders shared."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_NEW_MOUNTS, _NEW_NAME, _NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x20000, 0x4000000, 0x10000000, 0x20000000, 0x40000000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14

LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Machine:
    """A running machine.

    Attributes:
        parent: the process that waits for the machine's first process.
        process: the machine's first process, as this machine numbers it.
    """

    parent: int
    process: int

    def end(self) -> int:
        """Wait for the machine's end; returns the exit status, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.parent, 0)[1])


def start_machine(name: str, folder: Path, work: Callable[[], None]) -> Machine:
    """Run a function as the first process of a machine, which writes ``NAME.facts`` into a folder.

    Args:
        name: host name.
        folder: for the files that say who the machine is.
        work: what it does.
    """
    parent = os.fork()
    if not parent:
        os._exit(_isolated(name, folder, work))
    file = folder / f"{name}.pid"
    while not file.exists() or not file.read_text():
        if os.waitpid(parent, os.WNOHANG) != (0, 0):
            raise OSError(f"the machine {name} did not start")
        time.sleep(0.01)
    return Machine(parent, int(file.read_text()))


def machines_refused() -> str:
    """Why this system lets a process have no namespaces of its own; empty if it does."""
    child = os.fork()
    if not child:
        try:
            _enter("probe")
        except OSError:
            os._exit(1)
        os._exit(0)
    return "" if os.waitpid(child, 0)[1] == 0 else "this system permits no namespaces of network and processes"


def _isolated(name: str, folder: Path, work: Callable[[], None]) -> int:
    """Enter the namespaces, and run the work in the first process of the new table; returns its status, 128 + a signal."""
    _enter(name)
    child = os.fork()
    if child:
        (folder / f"{name}.pid").write_text(str(child))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status if status >= 0 else 128 - status
    status = 1
    try:
        _mount(b"proc", b"/proc", b"proc", 0)
        platform._uname_cache = None  # pyright: ignore[reportAttributeAccessIssue]  (the parent's name is remembered)
        facts = [platform.node(), str(Path("/proc/self/ns/net").readlink()), str(os.getpid())]
        (folder / f"{name}.facts").write_text(" ".join(facts))
        work()
        status = 0
    finally:
        os._exit(status)


def _enter(name: str) -> None:
    if os.geteuid() == 0:
        _call(LIBC.unshare, _NEW_MOUNTS | _NEW_NAME | _NEW_PROCESSES | _NEW_NETWORK)
    else:
        user, group = os.getuid(), os.getgid()
        _call(LIBC.unshare, _NEW_USER | _NEW_MOUNTS | _NEW_NAME | _NEW_PROCESSES | _NEW_NETWORK)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(b"none", b"/", None, _PRIVATE | _RECURSIVE)  # what is mounted here stays here
    socket.sethostname(name)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _call(LIBC.mount, source, target, kind, ctypes.c_ulong(flags), None)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
