"""The progress of a long command: a bar in a terminal, a line every half minute in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts finished work and shows it on standard error.

    Args:
        total: work to do.
        unit: its name.
        shown: whether this process shows it at all.
        stream: where to; by default standard error.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        shown: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.shown, self.clock = total, unit, shown, clock
        self.stream = sys.stderr if stream is None else stream
        self.done, self.began = 0, clock()
        self._last = self.began
        self._bar = None
        if shown and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, mininterval=1, file=self.stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.shown and self.done:
            self._write("")

    def add(self, count: int, name: str) -> None:
        """Count finished work.

        Args:
            count: how much.
            name: of its kind, shown beside the count.
        """
        self.done += count
        if self._bar is not None:
            self._bar.set_description(name, refresh=False)
            self._bar.update(count)
        elif self.shown and self.clock() - self._last >= EVERY:
            self._write(f", now {name}")

    def _write(self, suffix: str) -> None:
        self._last = self.clock()
        seconds = self._last - self.began
        rate = f", {seconds / self.done:.2f} s each" if self.done else ""
        self.stream.write(f"{self.done} of {self.total} {self.unit}s in {seconds:.0f} s{rate}{suffix}\n")
        self.stream.flush()
