"""Long trainings of the miniature at large batches, several at once, with their files written out.

``alignment``: adapters for the reward that has no gradient, by policy gradients and by regression. ``set-2``: the shipped
rewards at rank 16 and KL weight .02, three seeds. ``oracles``: adapters of set 2's settings for mixtures.
A finished training's adapter, tables and settings are added to ``OUT/BUNDLE.tar`` at once.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import Records
from unit_options import Clock, begin, parser

SHIPPED = ("brightness", "colourfulness", "compressibility", "contrast", "softness", "warmth")
MIXTURES = ("colourfulness:1,softness:1", "colourfulness:1,compressibility:1", "compressibility:1,softness:1",
            "colourfulness:1,compressibility:1,softness:1", "colourfulness:3,softness:1", "colourfulness:1,softness:3",
            "colourfulness:3,compressibility:1", "colourfulness:1,compressibility:3", "compressibility:3,softness:1",
            "compressibility:1,softness:3", "colourfulness:2,compressibility:1,softness:1",
            "colourfulness:1,compressibility:1,softness:2")  # fmt: skip
PATHWISE = {"adapter.rank": 16, "adapter.alpha": 16.0, "algorithm.kl_weight": 0.02, "sampling.samples": 64,
            "sampling.batch": 64, "run.iterations": 120, "run.watch_samples": 256, "run.watch_every": 60,
            "run.save_every": 40}  # fmt: skip
WITHOUT_GRADIENT = {"adapter.rank": 16, "adapter.alpha": 16.0, "algorithm.kl_weight": 0.02, "sampling.samples": 512,
                    "sampling.batch": 512, "run.watch_samples": 512, "run.watch_every": 10, "run.save_every": 20,
                    "run.iterations": 200}  # fmt: skip
POLICY = WITHOUT_GRADIENT | {"optimizer.learning_rate": 0.0003, "optimizer.clip_norm": 1.0, "optimizer.accumulate": 1}
ALIGNMENT: dict[str, dict[str, Any]] = {
    "dpok": POLICY | {"algorithm.name": "dpok", "algorithm.updates": 8, "algorithm.buffer": 6000},
    "grpo": POLICY | {"algorithm.name": "grpo"},
    "ddpo": POLICY | {"algorithm.name": "ddpo"},
    "rwr": WITHOUT_GRADIENT | {"algorithm.name": "rwr", "algorithm.kl_weight": 0.7, "algorithm.updates": 8,
                               "algorithm.buffer": 20000, "optimizer.accumulate": 1},
}  # fmt: skip
AT_ONCE = 6
TINY = {"run.iterations": 1, "sampling.samples": 8, "sampling.batch": 8, "sampling.steps": 2, "run.watch_samples": 4,
        "run.save_every": 1, "prompts.count": 4}  # fmt: skip
RESERVE = 15
"""Seconds before the unit's end at which trainings that still run are ended, so that their files can be kept."""


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        name: of its folder.
        mixture: as ``diffusion-blend miniature adapters`` takes it.
        settings: of the trainer, by their option's name.
        bundle: name of the tar that its files go into.
    """

    name: str
    mixture: str
    settings: dict[str, Any]
    bundle: str


def trainings(name: str) -> list[Training]:
    """The trainings of a set, most wanted first."""
    if name == "alignment":
        return [Training(f"alignment-{key}", "alignment", value, "alignment") for key, value in ALIGNMENT.items()]
    if name == "set-2":
        return [
            Training(f"{reward}-seed-{seed}", reward, PATHWISE | {"run.seed": seed}, f"set-2-seed-{seed}")
            for seed in range(3)
            for reward in SHIPPED
        ]
    return [
        Training(mixture.replace(":", "-").replace(",", "_"), mixture, PATHWISE, f"oracles-{number // 6}")
        for number, mixture in enumerate(MIXTURES)
    ]


def words(settings: dict[str, Any], *, tiny: bool) -> list[str]:
    """The trainer's options."""
    changed = settings | (TINY if tiny else {})
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


def train_one(mixture: str, folder: Path, arguments: list[str]) -> None:
    """Train one adapter in this process."""
    import torch
    from diffusion_blend.miniature.adapters import read_mixture, train_adapters

    torch.set_num_threads(1)
    train_adapters([read_mixture(mixture)], folder, arguments)


def start(training: Training, folder: Path, *, tiny: bool, cpu: bool) -> subprocess.Popen[bytes]:
    """Start a training in a process of its own; its output goes to ``log.txt`` in its folder."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", __file__, "--one", training.mixture, str(folder)]
    command += words(training.settings, tiny=tiny)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if cpu else {}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, env=os.environ | hidden, stdout=log, stderr=subprocess.STDOUT)


def keep(folder: Path, training: Training, out: Path) -> list[str]:
    """Add a training's adapter, tables, pictures and settings to its bundle; returns the names.

    Without an adapter, which only a training has that ended, the checkpoints are kept, from which it can be resumed.
    """
    names, done = [], any(folder.glob("*.safetensors"))
    with tarfile.open(out / f"{training.bundle}.tar", "a") as tar:
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            # The run folder of a training that ended holds the adapter once more.
            twice = done and (file.name == "adapter.safetensors" or "checkpoints" in inside.parts)
            if file.is_file() and not twice and "events" not in file.name:
                tar.add(file, f"{training.name}/{inside}")
                names.append(str(inside))
    return names


def watched(folder: Path) -> list[dict[str, float]]:
    """The rewards of the watched pictures, one row for each time."""
    found = sorted(folder.glob("*/watched.csv"))
    if not found:
        return []
    with found[0].open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def finish(training: Training, folder: Path, out: Path, status: str, seconds: float, records: Records) -> None:
    """Keep a training's files and write its line."""
    rows = watched(folder)
    said = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-5:] if status == "failed" else []
    records.write(
        "training", name=training.name, bundle=f"{training.bundle}.tar", status=status, seconds=seconds,
        first=rows[0] if rows else None, last=rows[-1] if rows else None, settings=training.settings,
        files=keep(folder, training, out), said=said,
    )  # fmt: skip


def run_all(wanted: list[Training], out: Path, clock: Clock, records: Records, *, tiny: bool, cpu: bool) -> int:
    """Run the trainings, several at once, until all are done or the time ends; returns how many failed."""
    waiting, failed = list(wanted), 0
    running: dict[str, tuple[Training, Path, subprocess.Popen[bytes], float]] = {}
    at_once = 1 if cpu else min(AT_ONCE, max(1, (os.cpu_count() or 2) - 2))
    with tempfile.TemporaryDirectory() as work:
        while waiting or running:
            late = clock.left() < RESERVE
            while waiting and not late and len(running) < at_once:
                training = waiting.pop(0)
                folder = Path(work) / training.name
                process = start(training, folder, tiny=tiny, cpu=cpu)
                running[training.name] = (training, folder, process, time.monotonic())
            for name, (training, folder, process, began) in list(running.items()):
                if process.poll() is None and late:
                    process.send_signal(signal.SIGINT)
                    try:
                        process.wait(5)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                    status = "cut"
                elif process.poll() is None:
                    continue
                else:
                    status = "done" if process.returncode == 0 else "failed"
                failed += status == "failed"
                finish(training, folder, out, status, time.monotonic() - began, records)
                del running[name]
            if late:
                break
            time.sleep(0.2)
    for training in waiting:
        records.write("training", name=training.name, bundle=f"{training.bundle}.tar", status="no time")
    return failed


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        train_one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return 0
    options_parser = parser(__doc__)
    options_parser.add_argument("--set", choices=["alignment", "set-2", "oracles"], required=True, help="what to train")
    options = options_parser.parse_args()
    records, clock = begin(options)
    options.out.mkdir(parents=True, exist_ok=True)
    from diffusion_blend.training.algorithms import ALGORITHMS

    wanted = trainings(options.set)
    for training in list(wanted):
        if (name := training.settings.get("algorithm.name", "draft")) not in ALGORITHMS:
            records.missing(training.name, f"the trainer has no algorithm {name}")
            wanted.remove(training)
    if options.tiny and options.set != "alignment":
        wanted = wanted[:1]
    failed = run_all(wanted, options.out, clock, records, tiny=options.tiny, cpu=options.cpu)
    print(json.dumps({"failed": failed, "left": round(clock.left())}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
