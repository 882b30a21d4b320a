"""A sweep on several machines that share a folder and nothing else: one is killed, one comes later."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.evaluation.sweep.report import write_report
from diffusion_blend.evaluation.sweep.run import Sweep
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]
OVER: dict[str, Any] = {
    "methods": ["base", "blend", "stochastic", "soup"],
    "weights": [[1, 1], [1, 3]],
    "images_per_point": 4,
    "batch": 2,
    "steps": 2,
    "save_images": 4,
    "resamples": 5,
    "claim_expiry": 2.0,
}
UNITS = 7 * 2
"""Base and three methods at two preferences, two units each."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def summary(folder: Path) -> Any:
    tables = json.loads((folder / "summary.json").read_text())
    del tables["settings"]
    return [
        {key: value for key, value in row.items() if key != "s/picture"} for rows in tables.values() for row in rows
    ]


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 300  # only a machine that has failed takes that long
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


class Folder:
    """The shared folder, and the work of each machine with the places where it waits for another."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.config = folder, settings(folder / "out", *world, **OVER)
        self.unit = Sweep._unit

    def made(self, machine: str = "") -> list[str]:
        file = self.folder / "made.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(machine)]

    def work(self, machine: str, before: Callable[[int], None]) -> Callable[[], None]:
        """Join the sweep and finish it; ``before`` is called with the number of this machine's units so far."""

        def unit(this: Sweep, point: Any, images: range) -> None:
            before(len(self.made(machine)))
            self.unit(this, point, images)
            with (self.folder / "made.txt").open("a") as file:
                file.write(f"{machine} {point.folder} {images[0]}\n")

        def run() -> None:
            setattr(Sweep, "_unit", unit)  # noqa: B010  (in the child process alone)
            with pytest.raises(OSError, match="unreachable|refused"):
                socket.create_connection(("127.0.0.1", int((self.folder / "port").read_text())), 1)
            ready = sweep(self.config)
            write_report(ready, ready.run())

        return run


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_machines_that_share_only_a_folder_finish_a_sweep_though_one_is_killed_and_one_comes_later(
    world: World, tmp_path: Path
) -> None:
    from machines import machines_refused, start_machine

    if machines_refused():
        pytest.skip(machines_refused())
    alone = tmp_path / "alone"
    alone.mkdir()
    single = sweep(settings(alone / "out", *world, **OVER))
    write_report(single, single.run())

    shared = Folder(tmp_path, world)

    def dies(count: int) -> None:
        if count == 1:
            (tmp_path / "holding").touch()  # its second claim
            time.sleep(600)

    def waits(count: int) -> None:
        if count == 3:
            wait_for(lambda: bool(shared.made("later")))

    with socket.create_server(("127.0.0.1", 0)) as server:  # no machine can reach another one's network
        (tmp_path / "port").write_text(str(server.getsockname()[1]))
        killed = start_machine("killed", tmp_path, shared.work("killed", dies))
        wait_for((tmp_path / "holding").exists)
        stays = start_machine("stays", tmp_path, shared.work("stays", waits))
        wait_for(lambda: len(shared.made("stays")) == 3)
        os.kill(killed.process, signal.SIGKILL)
        later = start_machine("later", tmp_path, shared.work("later", lambda _: None))
        assert [killed.end(), stays.end(), later.end()] == [128 + signal.SIGKILL, 0, 0]

    facts = [(tmp_path / f"{name}.facts").read_text().split() for name in ("killed", "stays", "later")]
    assert [fact[0] for fact in facts] == ["killed", "stays", "later"] and {fact[2] for fact in facts} == {"1"}
    assert len({fact[1] for fact in facts} | {str(Path("/proc/self/ns/net").readlink())}) == 4
    assert table(tmp_path / "out") == table(alone / "out")
    assert summary(tmp_path / "out") == summary(alone / "out")
    assert len(shared.made()) == len(set(shared.made())) == UNITS
    assert len(shared.made("killed")) == 1 and shared.made("stays") and shared.made("later")
    assert list((tmp_path / "out/claims").iterdir()) == []
    first, second = (
        {file.name: file.read_bytes() for file in (place / "out/images").rglob("*.png")} for place in (tmp_path, alone)
    )
    assert first == second
