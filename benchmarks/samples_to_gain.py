"""Measure how many pictures an algorithm samples until a reward has risen by a given amount, on the miniature.

Each run is a training of the shipped miniature for colourfulness, watched on pictures of fixed prompts and noise. Runs are
resumed where they stopped, so the study can be made in pieces: ``--minutes`` ends a piece after the checkpoint that follows.

    python -m benchmarks.samples_to_gain runs/gain --names dpok dpok-all --seeds 0 1 2 --minutes 12
    python -m benchmarks.samples_to_gain runs/gain --report
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusion_blend.miniature import rewards
from diffusion_blend.miniature.base import shipped
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

GAIN = 1.0
"""Colourfulness by which the watched pictures must rise; their spread over pictures of one prompt is about 1."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv2"]
PROMPTS = 16
EVERY = 2
"""Iterations between two watched rewards."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dpok": {"algorithm": {"name": "dpok", "kl_weight": 0.01, "buffer": 400}},
    "dpok-all": {"algorithm": {"name": "dpok", "kl_weight": 0.01, "buffer": 400}, "sampling": {"noisy_steps": "all"}},
    "ddpo": {"algorithm": {"name": "ddpo", "clip": "ppo", "statistics_minimum": 4}},
    "grpo": {"algorithm": {"name": "grpo", "clip": "ppo", "kl_weight": 0.01, "group": 8}},
    "nft": {
        "algorithm": {"name": "nft", "kl_weight": 0.0, "group": 8, "updates": 4},
        "sampling": {"noisy_steps": "all"},
    },
    "draft": {"algorithm": {"name": "draft", "kl_weight": 0.01}, "sampling": {"noisy_steps": "all"}},
}


def settings(folder: Path, name: str, seed: int, iterations: int) -> TrainConfig:
    """The settings of one run."""
    own = SETTINGS[name]
    sampling = {"steps": 12, "guidance_scale": 1.0, "samples": 32, "batch": 8, "noisy_steps": "auto"}
    return TrainConfig(
        output=str(folder / f"{name}-{seed}"),
        rewards={"colourfulness": 1.0},
        base=BaseConfig(),
        adapter=AdapterConfig(targets=TARGETS),
        sampling=SamplingConfig(**{**sampling, **own.get("sampling", {})}),
        algorithm=AlgorithmConfig(**own["algorithm"]),
        optimizer=OptimizerConfig(learning_rate=3e-4, clip_norm=10.0, accumulate=4),
        run=RunConfig(iterations=iterations, seed=seed, save_every=1, watch_every=EVERY, watch_samples=32),
    )


def train(folder: Path, name: str, seed: int, iterations: int, until: float) -> None:
    """Start or go on with one run, until its last iteration, its gain, or a time of the clock."""
    config = settings(folder, name, seed, iterations)
    while time.monotonic() < until and not finished(folder, name, seed, iterations):
        done = newest_whole(Path(config.output) / "checkpoints")
        number = int(done.name.rpartition("-")[2]) if done else 0
        part = replace(
            config, run=replace(config.run, iterations=min(number + EVERY, iterations)), resume=done is not None
        )
        model = DiffusersModel(shipped(), config.adapter, seed)
        texts = (Path(rewards.__file__).parent / "prompts.txt").read_text().splitlines()[:PROMPTS]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        Trainer(part, model, {"colourfulness": rewards.colourfulness}, {}, texts, Accelerator(cpu=True)).run()


def watched(folder: Path, name: str, seed: int) -> list[tuple[int, float]]:
    """Pictures sampled and the watched reward, in order."""
    file = folder / f"{name}-{seed}" / "watched.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    return [(32 * int(float(row["iteration"])), float(row["reward"])) for row in rows]


def samples_to_gain(rows: Sequence[tuple[int, float]], gain: float = GAIN) -> int | None:
    """Pictures until the reward is above the first by a gain and stays there on the next watch; None if it never is."""
    for (samples, reward), (_, after) in itertools.pairwise(rows):
        if min(reward, after) - rows[0][1] >= gain:
            return samples
    return None


def finished(folder: Path, name: str, seed: int, iterations: int) -> bool:
    rows = watched(folder, name, seed)
    return samples_to_gain(rows) is not None or (bool(rows) and rows[-1][0] >= 32 * iterations)


def report(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A table in Markdown: pictures to the gain for every seed, and their median."""
    lines = [f"| algorithm | pictures until +{GAIN:g}, by seed | median |", "|---|---|---|"]
    for name in names:
        rows = {seed: watched(folder, name, seed) for seed in seeds}
        rows = {seed: found for seed, found in rows.items() if found}
        reached = {seed: samples_to_gain(found) for seed, found in rows.items()}
        cells = [str(n) if n is not None else f"> {rows[seed][-1][0]}" for seed, n in reached.items()]
        known = [n if n is not None else float("inf") for n in reached.values()]
        median = statistics.median(known) if known else float("nan")
        lines.append(f"| {name} | {', '.join(cells) or '-'} | {_number(median, rows)} |")
    return lines


def _number(median: float, rows: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    if median == float("inf"):
        return f"> {min(found[-1][0] for found in rows.values())}"
    return "-" if median != median else f"{median:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    for seed in [] if options.report else options.seeds:
        for name in options.names:
            train(options.folder, name, seed, options.iterations, until)
    print("\n".join(report(options.folder, options.names, options.seeds)))


if __name__ == "__main__":
    main()
