"""Progress within an iteration: which part runs, and how much of it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Show = Callable[[str, int, int], None]


def _nobody(part: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclass
class Progress:
    """Tells the monitor, if there is one, what a run is doing.

    Attributes:
        show: part, steps done, steps in all.
    """

    show: Show = field(default=_nobody)

    def step(self, part: str, done: int, total: int) -> None:
        """Report a step of a part."""
        self.show(part, done, total)
