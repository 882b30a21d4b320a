"""Measure how many pictures an algorithm samples until a reward has risen by a given amount, on the miniature.

Each run is a training of the shipped miniature for colourfulness, watched on pictures of fixed prompts and noise. Runs are
resumed where they stopped, so the study can be made in pieces. ``--minutes`` is the time of a piece. It is shared evenly: the
run that has had the least of it goes on for a few iterations, until the time is over or every run has its gain. A run that has
not reached the gain is reported as ``> pictures``, the number that was not enough.

    python -m benchmarks.samples_to_gain runs/gain --minutes 30
    python -m benchmarks.samples_to_gain runs/gain --names dpok dpok-all --seeds 0 1 2 --minutes 12
    python -m benchmarks.samples_to_gain runs/gain --report
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusion_blend.miniature import rewards
from diffusion_blend.miniature.base import shipped
from diffusion_blend.training.adapter_optimizer import TrainingCollapsed
from diffusion_blend.training.checkpoints import newest_whole
from diffusion_blend.training.config import (
    AdapterConfig,
    AlgorithmConfig,
    BaseConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.trainer import Trainer

GAIN = 0.5
"""Colourfulness by which the watched pictures must rise; the standard deviation over an iteration's pictures is about 1."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv2"]
PROMPTS = 16
IMAGES = 32
"""Pictures of an iteration."""
EVERY = 2
"""Iterations between two watched rewards."""
PART = 4 * EVERY
"""Iterations that a run goes on for when it is its turn; loading the model takes less time."""
COLLAPSED = "collapsed.txt"
"""The file in a run's folder that says why it was stopped."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dpok": {"algorithm": {"name": "dpok", "kl_weight": 0.01, "buffer": 400}},
    "dpok-all": {"algorithm": {"name": "dpok", "kl_weight": 0.01, "buffer": 400}, "sampling": {"noisy_steps": "all"}},
    "ddpo": {"algorithm": {"name": "ddpo", "clip": "ppo", "statistics_minimum": 4}},
    "grpo": {"algorithm": {"name": "grpo", "clip": "ppo", "kl_weight": 0.01, "group": 8}},
    "nft": {
        "algorithm": {"name": "nft", "kl_weight": 0.0001, "group": 8, "updates": 4},
        "sampling": {"noisy_steps": "all"},
        "optimizer": {"clip_norm": 1.0, "accumulate": 2},
    },
    "draft": {
        "algorithm": {"name": "draft", "kl_weight": 0.01},
        "sampling": {"noisy_steps": "all"},
        "optimizer": {"clip_norm": 2.0, "accumulate": 1},
    },
}


def settings(folder: Path, name: str, seed: int, iterations: int) -> TrainConfig:
    """The settings of one run."""
    own = SETTINGS[name]
    sampling = {"steps": 12, "guidance_scale": 1.0, "samples": IMAGES, "batch": 8, "noisy_steps": "auto"}
    optimizer = {"learning_rate": 1e-3, "clip_norm": 10.0, "accumulate": 4}
    return TrainConfig(
        output=str(folder / f"{name}-{seed}"),
        rewards={"colourfulness": 1.0},
        base=BaseConfig(),
        adapter=AdapterConfig(targets=TARGETS),
        sampling=SamplingConfig(**{**sampling, **own.get("sampling", {})}),
        algorithm=AlgorithmConfig(**own["algorithm"]),
        optimizer=OptimizerConfig(**{**optimizer, **own.get("optimizer", {})}),
        run=RunConfig(iterations=iterations, seed=seed, save_every=1, watch_every=EVERY, watch_samples=32),
    )


def study(
    folder: Path, names: Sequence[str], seeds: Sequence[int], iterations: int, minutes: float, gain: float
) -> None:
    """Start the runs or go on with them, in equal shares of the time."""
    until, spent = time.monotonic() + 60 * minutes, dict.fromkeys(itertools.product(seeds, names), 0.0)
    while time.monotonic() < until:
        going = [(seed, name) for seed, name in spent if not finished(folder, name, seed, iterations, gain)]
        if not going:
            return
        seed, name = min(going, key=lambda run: spent[run])
        started = time.monotonic()
        train(folder, name, seed, iterations)
        spent[seed, name] += time.monotonic() - started


def train(folder: Path, name: str, seed: int, iterations: int) -> None:
    """Start one run, or resume it, for `PART` iterations."""
    config = settings(folder, name, seed, iterations)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    done = newest_whole(output / "checkpoints")
    end = min((int(done.name.rpartition("-")[2]) if done else 0) + PART, iterations)
    part = replace(config, run=replace(config.run, iterations=end), resume=done is not None)
    model = DiffusersModel(shipped(), config.adapter, seed)
    texts = (Path(rewards.__file__).parent / "prompts.txt").read_text().splitlines()[:PROMPTS]
    try:
        Trainer(part, model, {"colourfulness": rewards.colourfulness}, {}, texts, Accelerator(cpu=True)).run()
    except TrainingCollapsed as collapse:
        (output / COLLAPSED).write_text(str(collapse))


def watched(folder: Path, name: str, seed: int) -> list[tuple[int, float]]:
    """Pictures sampled and the watched reward, in order."""
    file = folder / f"{name}-{seed}" / "watched.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    return [(IMAGES * int(float(row["iteration"])), float(row["reward"])) for row in rows]


def samples_to_gain(rows: Sequence[tuple[int, float]], gain: float) -> int | None:
    """Pictures until the reward is above the first by a gain and stays there on the next watch; None if it never is."""
    for (samples, reward), (_, after) in itertools.pairwise(rows):
        if min(reward, after) - rows[0][1] >= gain:
            return samples
    return None


def crossing(rows: Sequence[tuple[int, float]], gain: float) -> float | None:
    """The same, interpolated linearly between the look at which it is reached and the look before.

    The looks are ``EVERY`` iterations apart, so the number of `samples_to_gain` is rounded up to the next of them.
    """
    reached = samples_to_gain(rows, gain)
    if reached is None:
        return None
    (before, low), (after, high) = next(pair for pair in itertools.pairwise(rows) if pair[1][0] == reached)
    return before + (after - before) * (rows[0][1] + gain - low) / (high - low)


def finished(folder: Path, name: str, seed: int, iterations: int, gain: float) -> bool:
    """Whether a run has reached its gain or its last iteration, or has collapsed."""
    rows = watched(folder, name, seed)
    ended = (folder / f"{name}-{seed}" / COLLAPSED).exists() or (bool(rows) and rows[-1][0] >= IMAGES * iterations)
    return ended or samples_to_gain(rows, gain) is not None


def report(folder: Path, names: Sequence[str], seeds: Sequence[int], gain: float) -> list[str]:
    """A table in Markdown: pictures to the gain for every seed, and their median."""
    lines = [
        f"| algorithm | pictures until +{gain:g}, by seed | median | interpolated between the looks | median |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        found = {seed: watched(folder, name, seed) for seed in seeds}
        runs = {seed: rows for seed, rows in found.items() if rows}
        reached = [samples_to_gain(rows, gain) for rows in runs.values()]
        tried = [rows[-1][0] for rows in runs.values()]
        cells = [_cell(folder / f"{name}-{seed}", n, last) for seed, n, last in zip(runs, reached, tried, strict=True)]
        between = [crossing(rows, gain) for rows in runs.values()]
        exact = [f"{n:.0f}" if n is not None else cell for n, cell in zip(between, cells, strict=True)]
        counts = f"{', '.join(cells) or '-'} | {_median(reached, tried)}"
        lines.append(f"| {name} | {counts} | {', '.join(exact) or '-'} | {_median(between, tried)} |")
    return lines


def _cell(folder: Path, reached: int | None, tried: int) -> str:
    if reached is not None:
        return str(reached)
    return f"> {tried}" + (" (collapsed)" if (folder / COLLAPSED).exists() else "")


def _median(reached: Sequence[float | None], tried: Sequence[int]) -> str:
    """The median over the seeds; where it is censored, a number that it exceeds."""
    if not reached:
        return "-"
    median = statistics.median([float("inf") if n is None else n for n in reached])
    if median < float("inf"):
        return f"{median:.0f}"
    return f"> {statistics.median([n if n is not None else last for n, last in zip(reached, tried, strict=True)]):.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--gain", type=float, default=GAIN, help="colourfulness that the watched pictures must gain")
    parser.add_argument("--minutes", type=float, default=1e9, help="of this piece, shared evenly by all runs")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.report:
        study(options.folder, options.names, options.seeds, options.iterations, options.minutes, options.gain)
    print("\n".join(report(options.folder, options.names, options.seeds, options.gain)))


if __name__ == "__main__":
    main()
