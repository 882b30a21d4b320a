"""What is measured, in which order, and how long each unit may take: the most wanted first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PARTS = {
    "a": "cost of a blend on true-size SD 1.5",
    "b": "cost of a blend on larger models",
    "c": "parity on the device",
    "d": "the trainer",
    "e": "long trainings of the miniature",
}


@dataclass(frozen=True)
class Unit:
    """One process.

    Attributes:
        name: by which it is chosen and reported.
        part: its letter in ``PARTS``.
        seconds: that it may take; it is ended then, and keeps the lines that it wrote.
        script: the file in this folder.
        arguments: its options.
    """

    name: str
    part: str
    seconds: int
    script: str
    arguments: tuple[str, ...] = ()


def _ratios(name: str, part: str, seconds: int, *arguments: str) -> Unit:
    return Unit(name, part, seconds, "ratios.py", arguments)


UNITS = (
    Unit("ceilings", "a", 30, "ceilings.py"),
    _ratios("sd15-batch-1", "a", 100, "--kind", "sd15", "--size", "64", "--adapters", "2", "3", "4", "--others"),
    Unit("parity", "c", 70, "parity.py", ("--mode", "plain")),
    Unit("draft-sd15", "d", 45, "trainer.py", ("--case", "draft-sd15")),
    Unit("dpok-sd15", "d", 60, "trainer.py", ("--case", "dpok-sd15")),
    _ratios("sdxl", "b", 60, "--kind", "sdxl", "--size", "128", "--adapters", "2", "4", "--no-merged"),
    Unit("parity-dynamic-vram", "c", 40, "dynamic_vram.py", ("--mode", "dynamic-vram")),
    _ratios("sd15-batch-4", "a", 70, "--kind", "sd15", "--size", "64", "--batch", "4", "--adapters", "2", "3", "4",
            "--others"),
    Unit("draft-sdxl", "d", 50, "trainer.py", ("--case", "draft-sdxl")),
    _ratios("sd35m", "b", 60, "--kind", "sd35m", "--size", "128", "--adapters", "2", "4", "--no-merged"),
    Unit("parity-low-vram", "c", 40, "parity.py", ("--mode", "low-vram")),
    Unit("parity-compile", "c", 60, "parity.py", ("--mode", "compile")),
    Unit("parity-quantised", "c", 40, "parity.py", ("--mode", "quantised")),
    Unit("parity-host-compiler", "c", 40, "dynamic_vram.py", ("--mode", "host-compiler")),
    Unit("grpo-sd15", "d", 60, "trainer.py", ("--case", "grpo-sd15")),
    Unit("grpo-sd35m", "d", 60, "trainer.py", ("--case", "grpo-sd35m")),
    Unit("host-tests", "c", 120, "host_tests.py"),
    Unit("alignment", "e", 300, "long_trainings.py", ("--set", "alignment")),
    Unit("set-2", "e", 460, "long_trainings.py", ("--set", "set-2")),
    Unit("oracles", "e", 460, "long_trainings.py", ("--set", "oracles")),
)  # fmt: skip
"""All units, most wanted first."""


def chosen(names: Sequence[str]) -> list[Unit]:
    """The units of some parts or names, in their order; all without a name.

    Raises:
        ValueError: a name is neither.
    """
    known = {*PARTS, *(unit.name for unit in UNITS)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no part or unit is called {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    return [unit for unit in UNITS if not names or unit.part in names or unit.name in names]
