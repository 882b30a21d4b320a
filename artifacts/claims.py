"""Claims of units of work by files in a shared folder: several processes and machines share the work without a server.

A claim is a file that exactly one process can create. Its holder touches the file while it works. A claim whose holder has
died, or that nobody has touched for the expiry time, can be overtaken: generation g + 1 of the claim is again a file that
exactly one process can create. Nothing is renamed, and no clocks of two machines are compared.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Unit = TypeVar("Unit")


@dataclass
class Claim:
    """A claim that this process holds; a thread touches its file until `release`."""

    files: Sequence[Path]
    token: str
    every: float
    _released: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to touch the file."""
        threading.Thread(target=self._touch, daemon=True).start()

    def _touch(self) -> None:
        while not self._released.wait(self.every):
            try:
                os.utime(self.files[-1])
            except OSError:  # overtaken and removed, or a file system that is away: the claim expires by itself
                continue

    def release(self) -> None:
        """Give the claim back. The lowest generation goes first, so that no second claim is possible in between."""
        self._released.set()
        for file in self.files[:-1]:
            file.unlink(missing_ok=True)
        if _owner(self.files[-1]).get("token") == self.token:  # else it expired, and the file is another's
            self.files[-1].unlink(missing_ok=True)


class Claims:
    """The claims of a folder, as one process sees them.

    Args:
        folder: shared by all processes; made with the first claim.
        expiry: seconds without a touch after which a claim can be overtaken. A holder touches four times as often.
    """

    def __init__(self, folder: Path, expiry: float) -> None:
        self.folder, self.expiry = folder, expiry
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, name: str) -> Claim | None:
        """Claim a unit of work; None while another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        token, files = secrets.token_hex(8), []
        while True:
            files.append(self.folder / f"{name}.{len(files)}")
            if _create(files[-1], token):
                claim = Claim(files, token, self.expiry / 4)
                claim.start()
                return claim
            if not self._is_stale(files[-1]):
                return None

    def _is_stale(self, file: Path) -> bool:
        try:
            touched = file.stat().st_mtime_ns
        except FileNotFoundError:  # released a moment ago: the next round takes it
            return False
        before, since = self._seen.get(file, (None, 0.0))
        if touched != before:
            self._seen[file] = (touched, time.monotonic())
            return _has_died(_owner(file))
        return time.monotonic() - since > self.expiry or _has_died(_owner(file))

    def each(
        self,
        units: Sequence[Unit],
        name: Callable[[Unit], str],
        is_done: Callable[[Unit], bool],
        wait: Callable[[float], None] = time.sleep,
    ) -> Iterator[Unit]:
        """Yield the units that this process shall do, until all are done, whoever does them.

        Args:
            units: in the order in which they should be begun; the same for every process.
            name: a file name for a unit.
            is_done: whether a unit's result is there.
            wait: called with seconds while other processes hold all that is left.

        Yields:
            Units that nobody has done; each is claimed until the next is asked for.
        """
        left = list(units)
        while left:
            busy: list[Unit] = []
            for unit in left:
                if is_done(unit):
                    continue
                claim = self.take(name(unit))
                if claim is None:
                    busy.append(unit)
                    continue
                try:
                    if not is_done(unit):  # done between the question and the claim
                        yield unit
                finally:
                    claim.release()
            left = busy
            if left:
                wait(min(1.0, self.expiry / 4))


def _create(file: Path, token: str) -> bool:
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as opened:
        json.dump({**_place(), "pid": os.getpid(), "started": _started(os.getpid()), "token": token}, opened)
    return True


def _owner(file: Path) -> dict[str, str | int | None]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # released, or written at this moment
        return {}


def _has_died(owner: dict[str, str | int | None]) -> bool:
    """Whether a claim's owner ran on this machine and runs no more; False for owners elsewhere."""
    if not owner or {key: owner.get(key) for key in _place()} != _place() or not _place()["processes"]:
        return False
    return _started(int(owner["pid"] or 0)) != owner["started"]


def _place() -> dict[str, str]:
    """This machine and its table of processes, which containers have of their own; empty where it is not known."""
    try:
        table = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return {"host": platform.node(), "processes": ""}
    return {"host": platform.node(), "processes": str(table)}


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot; None if there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
