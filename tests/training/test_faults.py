"""Whatever stops a run, what it left is whole, and going on ends where nothing had happened, bit for bit."""

from __future__ import annotations

import csv
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from diffusion_blend.training.checkpoints import ADAPTER, STATE, SUMS, list_checkpoints, load_state, verify
from PIL import Image
from safetensors.torch import load_file
from training_child import Fate, changes, network_attempts, run
from training_runs import same

ITERATIONS = 4


def command(base: Path, output: Path, *more: str) -> list[str]:
    small = {
        "output": output,
        "rewards": '{"own_rewards:redness": 1.0}',
        "base.path": base,
        "prompts.count": 2,
        "sampling.steps": 3,
        "sampling.guidance_scale": 1.0,
        "sampling.samples": 2,
        "sampling.batch": 2,
        "algorithm.buffer": 6,
        "algorithm.updates": 1,
        "optimizer.accumulate": 1,
        "optimizer.learning_rate": 0.01,
        "value.batch": 2,
        "run.iterations": ITERATIONS,
        "run.save_every": 1,
        "run.watch_every": 2,
        "run.watch_samples": 2,
    }
    return [*(word for name, value in small.items() for word in (f"--{name}", str(value))), *more]


class Runs:
    """Runs of one training, and what the undisturbed one ended with."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder, self.log = base, folder, folder / "log"
        self.whole = folder / "whole"
        start = time.monotonic()
        assert self.go(self.whole) == 0, self.said()
        self.seconds = time.monotonic() - start
        self.changes = changes(self.whole)

    def go(self, output: Path, fate: Fate | None = None, *more: str) -> int:
        """Go on, or start anew if nothing was saved before the fault."""
        return run(command(self.base, output, "--resume", *more), output, fate or Fate(), self.log)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def check_end(self, output: Path) -> None:
        """The adapter is the undisturbed run's, bit for bit, and so is the state it would go on from."""
        assert (output / ADAPTER).read_bytes().count(b"lora_up")
        assert same(load_file(output / ADAPTER), load_file(self.whole / ADAPTER))
        ours, theirs = (load_state(list_checkpoints(where / "checkpoints")[-1]) for where in (output, self.whole))
        for state in (ours, theirs):
            del state["config"]  # the output folder's name, the limit of a reward
            for row in state["history"]:
                del row["samples_per_second"]
        assert same(ours, theirs)


def check_whole(output: Path) -> int:
    """Read every file that does not say that it is partial; returns how many there are."""
    files = [path for path in output.rglob("*") if path.is_file() and ".partial" not in str(path)]
    for file in files:
        if file.suffix == ".safetensors":
            load_file(file)
        elif file.suffix == ".csv":
            with file.open(newline="") as text:
                assert all(None not in row and None not in row.values() for row in csv.DictReader(text)), file
        elif file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
        elif file.suffix == ".yaml":
            assert yaml.safe_load(file.read_text())["output"]
    for checkpoint in list_checkpoints(output / "checkpoints"):
        verify(checkpoint)
        assert load_state(checkpoint)["iteration"] == int(checkpoint.name.split("-")[1])
    return len(files)


@pytest.fixture(scope="module")
def runs(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_sd, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_random_moments(kills: int, runs: Runs, tmp_path: Path) -> None:
    """Half of the moments are a time, half a change of the output folder; a run that ends early is followed by another."""
    chance = random.Random(kills)
    output, killed, ended, files = tmp_path / "run0", 0, 0, 0
    while killed < kills:
        by_time = chance.random() < 0.5
        seconds = chance.uniform(0, runs.seconds) if by_time else None
        fate = Fate(seconds, 0 if by_time else chance.randint(1, runs.changes))
        status = runs.go(output, fate)
        assert status in (0, -9), runs.said()
        killed += status == -9
        if status == 0:
            runs.check_end(output)
            ended += 1
            output = tmp_path / f"run{ended}"
        elif output.exists():
            files += check_whole(output)
    assert runs.go(output) == 0, runs.said()
    runs.check_end(output)
    print(f"{killed} kills over {ended + 1} runs, {files} whole files looked at")
    assert files


def test_no_network_at_import_or_in_a_run(runs: Runs) -> None:
    assert network_attempts(runs.whole) == ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes; skips where it may not be made."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(runs: Runs, tmp_path: Path) -> None:
    disk, output = tmp_path / "disk", tmp_path / "disk/run"
    used = sum(path.stat().st_size for path in runs.whole.rglob("*") if path.is_file())
    with small_disk(disk, 4 * used):
        filler = disk / "filler"
        filler.write_bytes(bytes(3 * used))
        assert runs.go(output) == 1
        assert "No space left on device" in runs.said()
        assert not (output / ADAPTER).exists()
        check_whole(output)
        filler.unlink()
        assert runs.go(output) == 0, runs.said()
        check_whole(output)
        runs.check_end(output)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same on any machine: the kernel refuses to write beyond a size, in the middle of a file."""
    from diffusion_blend.training.checkpoints import save_checkpoint

    save_checkpoint(tmp_path, 1, {"iteration": 1}, b"adapter", keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, 2, {"iteration": 2, "tensor": torch.zeros(100_000)}, b"adapter", keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (left,) = tmp_path.iterdir()
    verify(left)
    assert load_state(left) == {"iteration": 1}


REWARD_FAULTS = {
    "raises": r"RuntimeError: out of order.*reward 'own_rewards:redness' raised RuntimeError: out of order",
    "nan": r"reward 'own_rewards:redness' gave nan for the prompt",
    "inf": r"reward 'own_rewards:redness' gave inf for the prompt",
    "shape": r"reward 'own_rewards:redness' returned shape \(\) for 2 images",
    "text": r"reward 'own_rewards:redness' returned str",
    "hangs": r"reward 'own_rewards:redness' has not answered after 5 s \(reward_timeout\)",
}


MORE = ("nan", "inf", "shape", "text")  # `score` has its own test; here, that the run stops and goes on


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.full] * (f in MORE)) for f in REWARD_FAULTS])
def test_a_reward_that_fails_in_the_middle(fault: str, runs: Runs, tmp_path: Path) -> None:
    import re

    output = tmp_path / "run"
    environment = {"COUNT_IN": str(tmp_path / "calls"), "FAIL_AT": "5", "FAIL_BY": fault}  # in the third iteration
    limit = ["--reward_timeout", "5"] if fault == "hangs" else []
    assert runs.go(output, Fate(environment=environment), *limit) == 1
    assert re.search(REWARD_FAULTS[fault], runs.said(), re.DOTALL), runs.said()
    assert not (output / ADAPTER).exists()
    check_whole(output)
    saved = list_checkpoints(output / "checkpoints")
    assert saved and load_state(saved[-1])["iteration"] < ITERATIONS
    assert runs.go(output) == 0, runs.said()
    runs.check_end(output)


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {
    "a flipped bit in the state": lambda folder: flip(folder / STATE, 0.6),
    "a flipped bit at the state's start": lambda folder: flip(folder / STATE, 0.0),
    "a flipped bit in the adapter": lambda folder: flip(folder / ADAPTER, 0.9),
    "a flipped bit in the digests": lambda folder: flip(folder / SUMS, 0.1),
    "a truncated state": lambda folder: cut(folder / STATE),
    "an empty state": lambda folder: (folder / STATE).write_bytes(b""),
    "no state": lambda folder: (folder / STATE).unlink(),
    "no adapter": lambda folder: (folder / ADAPTER).unlink(),
    "no digests": lambda folder: (folder / SUMS).unlink(),
    "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_never_gone_on_from(damage: str, runs: Runs, tmp_path: Path) -> None:
    from diffusion_blend.training.checkpoints import DamagedCheckpoint
    from diffusion_blend.training.resume import newest_checkpoint

    shutil.copytree(runs.whole / "checkpoints", tmp_path / "checkpoints")
    before, last = list_checkpoints(tmp_path / "checkpoints")
    assert newest_checkpoint(tmp_path) == last
    DAMAGES[damage](last)
    assert newest_checkpoint(tmp_path) == before
    DAMAGES[damage](before)
    with pytest.raises(DamagedCheckpoint, match=f"no checkpoint can be resumed: .*{last.name}.*{before.name}"):
        newest_checkpoint(tmp_path)


def test_going_on_from_before_a_damaged_checkpoint_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.whole, output)
    (output / ADAPTER).unlink()
    last = list_checkpoints(output / "checkpoints")[-1]
    flip(last / STATE, 0.6)
    assert runs.go(output) == 0, runs.said()
    assert f"{last / STATE} is not what was written" in runs.said()
    check_whole(output)
    runs.check_end(output)


def test_with_every_checkpoint_damaged_the_run_stops_and_says_so(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.whole, output)
    for checkpoint in list_checkpoints(output / "checkpoints"):
        cut(checkpoint / STATE)
    before = sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*"))
    assert runs.go(output) == 1
    assert "no checkpoint can be resumed" in runs.said() and "Traceback" not in runs.said()
    assert sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*")) == before
