"""Time per sample, and samples until a reward has risen, beside the DDPO trainer of TRL 0.11.4 (the last version that has one).

The pipeline is small, of SD 1.5's kind, with random weights. Batch, steps, guidance, LoRA rank and targets, learning rate,
clip range and gradient norm are the same; TRL's are per latent element and are converted. Every trainer lives in a process of
its own, and the trainers take turns, so that other work on the machine slows them all.

1. Time: all denoising steps are noisy and trained, as in TRL. A ratio is that of one round, with the processor seconds of the
   process on a CPU and the clock's on a GPU. The first round warms up and does not count.
2. Gain: the trainers start again, ours with its default window of noisy steps. The gain is the one that TRL's trainer reaches
   in the time given, and every trainer's samples until its own reward has risen as much are counted.

TRL runs with the libraries of this project, and needs itself and pandas beside them:

    pip install --target trl-only --no-deps trl==0.11.4 pandas python-dateutil six
    PYTHONPATH=trl-only python -m benchmarks.trl_ddpo --rounds 8 --minutes 4
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from benchmarks.trl_ways import Options, make_way

VERSION = "0.11.4"
INSTALL = f"run pip install --target trl-only --no-deps trl=={VERSION} pandas python-dateutil six, and put trl-only on PYTHONPATH"
TARGETS = {"ddpo": 1.0, "dpok": 1.3}
"""The time per sample that each trainer may take, TRL's being 1."""
SHARE = 1 / 3
"""The samples that each trainer may take until the gain, TRL's being 1."""
OF_TRL = 0.8
"""The share of TRL's final gain that is the gain to reach, so that noise in its last rewards decides nothing."""
LAST = 4
"""Iterations over which rewards are averaged."""


@dataclass(frozen=True)
class Step:
    """One iteration of a trainer: its seconds, and the mean reward of the images that it sampled."""

    seconds: float
    reward: float


def serve(name: str, options: Options, connection: Connection) -> None:
    """Make a trainer, and one iteration of it for each number that arrives; None ends."""
    iterate = make_way(name, options)
    connection.send("ready")
    while (iteration := connection.recv()) is not None:
        connection.send(Step(*iterate(iteration)))


class Trainer:
    """A trainer in a process of its own."""

    def __init__(self, name: str, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.steps = name, list[Step]()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, options, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._receive()

    def iterate(self) -> None:
        """Make the next iteration."""
        self.connection.send(len(self.steps))
        self.steps.append(self._receive())

    def _receive(self) -> Step:
        try:
            return self.connection.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name} has ended; its error is above") from None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join(timeout=30)


def take_turns(names: Sequence[str], options: Options, rounds: int, minutes: float) -> dict[str, list[Step]]:
    """Let the trainers make an iteration each in every round, in an order that changes.

    Args:
        names: of the trainers.
        options: of all of them.
        rounds: the most rounds.
        minutes: after which no other round begins; the start of the trainers does not count.
    """
    with ExitStack() as stack:
        trainers = [stack.enter_context(Trainer(name, options)) for name in names]
        until = time.monotonic() + 60 * minutes
        for number in range(rounds):
            if time.monotonic() >= until and number > 1:
                break
            for i in range(len(trainers)):
                trainers[(i + number) % len(trainers)].iterate()
        return {trainer.name: trainer.steps for trainer in trainers}


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The median of the rounds' ratios with its 95 % bootstrap interval (percentiles)."""
    import numpy as np
    from scipy import stats

    ratios = np.asarray(ours) / np.asarray(theirs)
    if len(ratios) < 3:
        return float(np.median(ratios)), float("nan"), float("nan")
    interval = stats.bootstrap(
        (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(np.median(ratios)), float(interval.low), float(interval.high)


def time_table(steps: dict[str, list[Step]], samples: int) -> list[str]:
    """A table in Markdown: seconds per sample, and their ratio to TRL's. The first round is left out."""
    seconds = {name: [step.seconds / samples for step in own[1:]] for name, own in steps.items()}
    lines = ["| trainer | ms per sample, median | ratio to TRL, 95 % interval | target |", "|---|---|---|---|"]
    for name, own in seconds.items():
        middle, low, high = median_ratio(own, seconds["trl"])
        ratio = "1" if name == "trl" else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        target = f"<= {TARGETS[name]:g}" if name in TARGETS else ""
        lines.append(f"| {name} | {1000 * statistics.median(own):.1f} | {ratio} | {target} |")
    return lines


def smoothed(rewards: Sequence[float]) -> list[float]:
    """The mean of the last `LAST` rewards at each place from the `LAST`-th on."""
    return [statistics.fmean(rewards[i - LAST : i]) for i in range(LAST, len(rewards) + 1)]


def samples_until(rewards: Sequence[float], level: float, samples: int) -> int | None:
    """Samples until the smoothed reward is at a level; None if it never is."""
    return next((samples * (i + LAST) for i, reward in enumerate(smoothed(rewards)) if reward >= level), None)


def gain_table(steps: dict[str, list[Step]], samples: int) -> list[str]:
    """A table in Markdown: samples until each trainer's reward has risen as TRL's has.

    The first iteration's images are the base's for every trainer, so its rewards together are the level before training.
    """
    rewards = {name: [step.reward for step in own] for name, own in steps.items()}
    if min(len(own) for own in rewards.values()) < 2 * LAST:
        return [f"Too few rounds for the gain: it needs {2 * LAST} at least."]
    first = [own[0] for own in rewards.values()]
    before, noise = statistics.fmean(first), statistics.stdev(first)
    gain = OF_TRL * (smoothed(rewards["trl"])[-1] - before)
    lines = [
        f"Reward before training {before:.3f}; TRL's trainer gains {gain / OF_TRL:+.3f} in {samples * len(rewards['trl'])} "
        f"samples; the mean reward of one iteration differs by {noise:.3f} between the trainers before training.",
        "",
    ]
    if gain <= noise / LAST**0.5:
        lines += ["TRL's gain is within the noise, so there is no gain to compare: give more minutes.", ""]
    found = {name: samples_until(own, before + gain, samples) for name, own in rewards.items()}
    lines += [f"| trainer | samples until {gain:+.3f} | share of TRL's | final gain |", "|---|---|---|---|"]
    for name, own in rewards.items():
        needed, theirs = found[name], found["trl"]
        count = f"> {samples * len(own)}" if needed is None else str(needed)
        share = f"{needed / theirs:.2f} (target <= {SHARE:.2f})" if needed and theirs and name != "trl" else ""
        lines.append(f"| {name} | {count} | {share} | {smoothed(own)[-1] - before:+.3f} |")
    return lines


def trl_version() -> str:
    """The version of TRL that would be imported; empty where there is none."""
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of the time, at least 4; the first does not count")
    parser.add_argument("--minutes", type=float, default=4.0, help="for the gain; 0 leaves it out")
    parser.add_argument("--iterations", type=int, default=200, help="the most iterations of the gain")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=16, help="images per iteration")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (found := trl_version()) != VERSION:
        parser.error(f"trl {VERSION} is needed, and {found or 'none'} is installed: {INSTALL}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            Path(folder), given.steps, given.samples, given.batch, given.guidance, given.learning_rate, given.seed
        )
        names = ["trl", *TARGETS]
        timed = take_turns(names, options, max(given.rounds, 4), float("inf"))
        print("\n".join(time_table(timed, given.samples)), flush=True)
        if given.minutes:
            risen = take_turns(names, options.with_window(), given.iterations, given.minutes)
            print("\n" + "\n".join(gain_table(risen, given.samples)))


if __name__ == "__main__":
    main()
