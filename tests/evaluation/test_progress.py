"""Progress: lines in a log file, a bar in a terminal, nothing from other processes."""

from __future__ import annotations

import io

from diffusion_blend.artifacts.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, shown: bool = True) -> str:
    now = [0.0]
    with Progress(6, "picture", shown=shown, stream=stream, clock=lambda: now[0]) as progress:
        for second in (10.0, 31.0, 40.0):
            now[0] = second
            progress.add(2, "blend")
    return stream.getvalue()


def test_a_log_file_has_a_line_every_half_minute_and_one_at_the_end() -> None:
    assert work(io.StringIO()).splitlines() == [
        "4 of 6 pictures in 31 s, 7.75 s each, now blend",
        "6 of 6 pictures in 40 s, 6.67 s each",
    ]


def test_a_terminal_has_a_bar_and_other_processes_show_nothing() -> None:
    assert "6/6" in work(Terminal()) and "\r" in work(Terminal())
    assert work(io.StringIO(), shown=False) == "" == work(Terminal(), shown=False)
