"""Monitoring of a run: progress bar, TensorBoard, metrics table, reward curve, sample grid, held-out rewards."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..artifacts.files import write_atomically
from ..artifacts.pictures import captioned_grid, film_strips
from ..artifacts.tables import csv_bytes
from ..rewards.catalogue import short_names
from ..rewards.protocol import Reward, score, weighted_sum
from .collection import Collector
from .context import RunContext
from .figures import reward_curve
from .state import TrainState

_SECONDS_BETWEEN = 0.5
_SHOWN = ("reward", "kl", "ratio_deviation", "clip_fraction", "effective_share", "samples_per_second")


class Monitor:
    """Shows and records a run; everything is written by the main process."""

    def __init__(self, context: RunContext, rewards: Mapping[str, Reward]) -> None:
        """Watch a run.

        Args:
            context: the run.
            rewards: the trained terms and the held-out rewards, by name.
        """
        self.context, self.rewards = context, rewards
        self.collector = Collector(context)
        self.config, self.processes = context.config, context.processes
        self.output = Path(self.config.output)
        self._bar: tqdm | None = None
        self._shown = 0.0
        context.progress.show = self._show

    def _show(self, part: str, done: int, total: int) -> None:
        """Show the part of an iteration that runs, at most twice a second."""
        if self._bar is not None and (time.monotonic() - self._shown > _SECONDS_BETWEEN or done >= total):
            self._bar.set_description(f"{part} {min(done, total)}/{total}")
            self._shown = time.monotonic()

    @contextmanager
    def open(self, state: TrainState) -> Iterator[Monitor]:
        """Start the progress bar and the trackers. The tables are written however the run ends."""
        if self.processes.main:
            (self.output / "pictures").mkdir(parents=True, exist_ok=True)
        self.processes.accelerator.init_trackers("tensorboard", init_kwargs={"wandb": offline(self.output)})
        total = self.config.run.iterations
        with tqdm(total=total, initial=state.iteration, unit="iteration", disable=not self.processes.main) as bar:
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None
                self._write_tables(state)

    def record(self, state: TrainState, figures: Mapping[str, float]) -> None:
        """Record one iteration's figures."""
        state.history.append({"iteration": state.iteration, **figures})
        self.processes.accelerator.log(dict(figures), step=state.iteration)
        if self.processes.main:
            write_atomically(self.output / "metrics.csv", csv_bytes(state.history))
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix({name: f"{figures[name]:.4g}" for name in _SHOWN if name in figures})

    def watch(self, state: TrainState, *, last: bool = False) -> None:
        """Every ``watch_every`` iterations (and at the end): sample grid, held-out rewards, reward curve."""
        every = self.config.run.watch_every
        seen = bool(state.watched) and state.watched[-1]["iteration"] == state.iteration
        if not every or seen or not (last or state.iteration % every == 0):
            return
        images, rows = self._samples()  # on every process, because a base that is split over them runs on all or none
        if self.processes.main:
            scores = score(self.rewards, images, self.context.prompts.texts(rows))
            figures = {name: float(values.mean()) for name, values in scores.items()}
            total = float(weighted_sum(scores, self.context.reward_weights(rows)).mean())
            state.watched.append({"iteration": state.iteration, "reward": total, **figures})
            named = {f"watched/{name}": value for name, value in figures.items()}
            self.processes.accelerator.log(named, step=state.iteration)
            self._picture(state.iteration, images, captions(self.context.prompts.texts(rows), scores))
            self._write_tables(state)
        self.processes.wait()

    def _picture(self, iteration: int, images: Tensor, below: list[str]) -> None:
        """Write the grid, and give it to the trackers."""
        content = captioned_grid(film_strips(images) if images.ndim == 5 else images, below)
        write_atomically(self.output / "pictures" / f"{iteration:08d}.png", content)
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        for tracker in self.processes.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"watched": pixels[None]}, step=iteration, **layout)

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Sample fixed prompts with fixed noise, so that only the adapter makes a difference; images and prompt rows."""
        count = self.config.run.watch_samples
        prompt = torch.arange(count) % len(self.context.prompts)
        runs = self.collector.sample(prompt, [("watch", i) for i in range(count)], measure_kl=False)
        return runs.images, prompt

    def _write_tables(self, state: TrainState) -> None:
        if not self.processes.main:
            return
        for name, rows in (("metrics.csv", state.history), ("watched.csv", state.watched)):
            if rows:
                write_atomically(self.output / name, csv_bytes(rows))
        if state.history:
            curve = reward_curve(state.history, state.watched, list(self.config.rewards), self.config.heldout)
            write_atomically(self.output / "rewards.png", curve)


def captions(prompts: Sequence[str], scores: Mapping[str, Tensor]) -> list[str]:
    """The prompt and the scores of every picture, in words."""
    named = {short: scores[name] for name, short in short_names(scores).items()}
    return [
        "\n".join([prompt, *(f"{name} {float(values[i]):.3g}" for name, values in named.items())])
        for i, prompt in enumerate(prompts)
    ]


def offline(folder: Path) -> dict[str, Any]:
    """Arguments of W&B: it stays on this machine unless the user's environment says otherwise."""
    return {"mode": os.environ.get("WANDB_MODE", "offline"), "dir": str(folder)}
