"""What all units share: their options, the line that names the machine, and how much time is left."""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

from records import Records, of_this_unit


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that the runner gives to every unit."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cpu", action="store_true", help="measure on the CPU; the figures say so")
    options.add_argument("--tiny", action="store_true", help="small networks and few rounds: tries the program itself")
    options.add_argument("--seconds", type=float, default=120.0, help="that this unit may take")
    options.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    return options


@dataclass
class Clock:
    """The time of a unit.

    Args:
        seconds: that it may take from now on.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds that remain."""
        return self.seconds - (time.monotonic() - self.started)


def begin(options: argparse.Namespace) -> tuple[Records, Clock]:
    """Start the clock and write the line that names the machine. Imports torch.

    Raises:
        SystemExit: no GPU is there and ``--cpu`` was not given.
    """
    clock, records = Clock(options.seconds), of_this_unit()
    import torch

    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: give --cpu to measure on the CPU.")
    records.write("machine", **machine(cpu=options.cpu), cpu=options.cpu, tiny=options.tiny)
    return records, clock


def machine(*, cpu: bool) -> dict[str, str | int]:
    """Names of the card, of torch, of the host and of the checkout, and the date."""
    import torch

    today = time.strftime("%Y-%m-%d", time.gmtime())
    values: dict[str, str | int] = {"date": today, "torch": torch.__version__, "python": platform.python_version()}
    values |= {"commit": os.environ.get("GPU_KIT_COMMIT", "unknown"), "host": os.environ.get("GPU_KIT_HOST", "none")}
    if cpu:
        return values | {"card": "CPU", "threads": torch.get_num_threads()}
    card = torch.cuda.get_device_properties(0)
    return values | {"card": card.name, "memory": card.total_memory, "cuda": torch.version.cuda or "none"}
