"""Two network namespaces of Linux as two machines: each sees the other over a virtual cable, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One namespace.

    Attributes:
        name: of the namespace.
        address: of its end of the cable.
        interface: its end of the cable.
    """

    name: str
    address: str
    interface: str

    def start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command in this namespace."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *words],
            env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": self.interface},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self) -> None:
        """Kill every process in this namespace at once, as when the machine loses its power."""
        found = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


class NoNamespaces(Exception):
    """This system has no ``ip``, or does not permit network namespaces."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make two namespaces and the cable between them, and remove them afterwards.

    Raises:
        NoNamespaces: there is no ``ip``, or making namespaces is not permitted.
    """
    mark = os.getpid()
    pair = tuple(Machine(f"blend-{mark}-{i}", f"10.77.0.{i + 1}", f"bl{mark}-{i}") for i in range(2))
    made: list[Machine] = []
    try:
        for machine in pair:
            try:
                _ip("netns", "add", machine.name)
            except FileNotFoundError as error:
                raise NoNamespaces("no network namespaces here: there is no ip") from error
            except subprocess.CalledProcessError as error:
                raise NoNamespaces(f"no network namespaces here: {error.stderr.strip()}") from error
            made.append(machine)
        _ip("link", "add", pair[0].interface, "type", "veth", "peer", "name", pair[1].interface)
        for machine in pair:
            _ip("link", "set", machine.interface, "netns", machine.name)
            inside = ("-n", machine.name)
            _ip(*inside, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            _ip(*inside, "link", "set", machine.interface, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield pair[0], pair[1]
    finally:
        for machine in made:
            _ip("netns", "del", machine.name)
