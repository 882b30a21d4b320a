"""Trainings in processes that may be killed. They are forked from a process that has already imported the libraries.

That process is the fork server of `multiprocessing`. Its own start takes seconds; later trainings start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""Audit events that change a folder. Files that are opened for writing count as well."""


@dataclass(frozen=True)
class Fate:
    """The kill of a training process, and its environment.

    Args:
        seconds: SIGKILL this long after the start; None for no kill.
        change: SIGKILL just before this change of the output folder, counted from 1; 0 for no kill.
        environment: variables to set in the process.
    """

    seconds: float | None = None
    change: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def run(arguments: Sequence[str], output: Path, fate: Fate, log: Path) -> int:
    """Train in a process of its own and write its output to ``log``.

    Returns:
        Its exit status; -9 if it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["network_watch", "training_child", "diffusion_blend.training.launch"])
    process = context.Process(target=_train, args=(list(arguments), str(output), fate, str(log)))
    process.start()
    process.join(fate.seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def changes(output: Path) -> int:
    """Return the number of changes by the last training that ran to its end."""
    return int(output.with_name(f"{output.name}.changes").read_text())


def network_attempts(output: Path) -> str:
    """Return the attempts of the last training that ran to its end to reach other machines, with those of its imports."""
    file = output.with_name(f"{output.name}.network")
    return file.read_text() if file.exists() else ""


def _train(arguments: list[str], output: str, fate: Fate, log: str) -> None:
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= dict(fate.environment)
    import torch
    from diffusion_blend.training.command import main
    from network_watch import ATTEMPTS  # the watch began before the trainer was imported

    torch.set_num_threads(1)
    count = 0

    def count_changes(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            changed = bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path).startswith(output)
        else:
            changed = event in CHANGES and str(arguments[0]).startswith(output)
        count += changed
        if changed and count == fate.change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_changes)
    status = main(arguments)
    Path(output).with_name(f"{Path(output).name}.changes").write_text(str(count))
    if ATTEMPTS:
        Path(output).with_name(f"{Path(output).name}.network").write_text("\n".join(ATTEMPTS))
    sys.exit(status)
