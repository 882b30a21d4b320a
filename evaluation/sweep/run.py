"""A sweep: each point's pictures are sampled, scored and written, one unit of work at a time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...artifacts.claims import Claims
from ...artifacts.pictures import read_picture, to_pil
from ...artifacts.progress import Progress
from ...artifacts.workers import Worker
from ...rewards.protocol import Reward, score
from ...training.prompt_table import PromptTable
from ...training.randomness import trajectory_noise
from .batches import Batches, unit_size
from .config import SweepConfig
from .external_scores import join_scores
from .methods import sampler
from .points import Point
from .records import Records, Row
from .runner import MethodRunner
from .steps import Chunk, Cost, now

Unit = tuple[Point, range]
"""A point that represents its recipe, and a run of images."""


@dataclass(frozen=True)
class Sweep:
    """A sweep ready to run.

    Attributes:
        config: the settings.
        runner: makes the pictures.
        points: those asked for, in the order of the settings.
        scales: the number by which each adapter's reward is divided before it is weighed, float[m].
        rewards: every reward of the folder, by the user's names.
        prompts: the prompts, encoded once.
        records: its files.
        worker: this process.
        batches: how many pictures a network call makes.
    """

    config: SweepConfig
    runner: MethodRunner
    points: Sequence[Point]
    scales: Sequence[float]
    rewards: Mapping[str, Reward]
    prompts: PromptTable
    records: Records
    worker: Worker
    batches: Batches

    def run(self) -> list[Row]:
        """Share the work with other processes until all that was asked for is done, and write ``samples.csv``.

        Returns:
            A row per picture that the folder holds, in the order of the tables.
        """
        claims = Claims(self.records.folder / "claims", self.config.claim_expiry)
        units = self._by_cost(self.units())
        left = [unit for unit in units if not self._is_made(unit)]
        total = sum(len(images) for _, images in left)
        with Progress(total, "picture", shown=self.worker.is_first) as progress:
            for point, images in claims.each(left, self._name, self._is_made):
                self._unit(point, images)
                progress.add(len(images), point.recipe["sampler"])
        for point, images in claims.each(self._all_units(), self._name, self._is_scored):
            self._score_again(point, images)
        rows = self.rows()
        if self.worker.is_first:
            self.records.write_samples(rows)
        return rows

    def units(self) -> list[Unit]:
        """Every unit of work that was asked for, once."""
        recipes = {point.folder: point for point in self.points}
        return [(point, images) for images in self._chunks(self.config.images_per_point) for point in recipes.values()]

    def _all_units(self) -> list[Unit]:
        """Every finished unit that a point of the folder has, once."""
        points = {(point.folder, images): (point, images) for point in self.union() for images in self._held(point)}
        return list(points.values())

    def _held(self, point: Point) -> list[range]:
        return [images for images in self._chunks(point.images) if self.records.unit(point.folder, images).exists()]

    def union(self) -> list[Point]:
        """Every point that was ever asked of the folder, in the order of the tables."""
        return self.records.points()

    def _by_cost(self, units: Sequence[Unit]) -> list[Unit]:
        """The most expensive units first, so that none of them is begun last while the other processes have no work."""

        def cost(unit: Unit) -> float:
            point, images = unit
            return -len(images) * sampler(point.recipe).calls(point.recipe)

        return sorted(units, key=cost)

    def _chunks(self, count: int) -> list[range]:
        batch = unit_size(self.config)
        return [range(start, min(start + batch, count)) for start in range(0, count, batch)]

    def _name(self, unit: Unit) -> str:
        return f"{unit[0].folder}-{unit[1][0]:06d}-{unit[1][-1]:06d}"

    def _is_made(self, unit: Unit) -> bool:
        return self.records.unit(unit[0].folder, unit[1]).exists()

    def _is_scored(self, unit: Unit) -> bool:
        rows = self.records.rows(unit[0].folder, unit[1]) or []
        return all(name in row for row in rows for name in self.rewards)

    def _unit(self, point: Point, images: range) -> None:
        parts = self.batches.run(point.recipe["sampler"], images, partial(self._part, point))
        rows = [row for part in parts for row, _ in part]
        kept = {row["image"]: picture for part in parts for row, picture in part if picture is not None}
        # A claim that expired while it was held was made twice: the first counts.
        if not self._is_made((point, images)):
            self.records.write_unit(point.folder, images, rows, kept)

    def _part(self, point: Point, images: range) -> list[tuple[Row, bytes | None]]:
        """The rows of pictures that are made at once, each with its file's content if it is kept."""
        chunk, cost = self._chunk(images), Cost()
        device = self.runner.network.device
        start = now(device)
        samples = self.runner.sample(point, chunk, cost)
        with torch.inference_mode():
            pictures = self.runner.network.decode(samples.latents)
        seconds = (now(device) - start - cost.extra_seconds) / len(images)
        pictures = pictures.cpu().clone()
        if self.records.rounds_pictures:
            pictures = (pictures.clamp(0, 1) * 255).round() / 255
        scores = score(self.rewards, pictures, chunk.prompts)
        kl = [None] * len(images) if samples.kl is None else samples.kl.tolist()
        weights = None if samples.log_weights is None else samples.log_weights.tolist()
        rows: list[Row] = [
            {
                "image": image,
                **{name: float(scores[name][i]) for name in self.rewards},
                "kl": kl[i],
                "seconds": seconds,
                "calls": cost.calls,
                "kl_calls": cost.extra_calls,
                **({} if weights is None else {"log_weight": weights[i]}),
            }
            for i, image in enumerate(images)
        ]
        kept = [_png(pictures[i]) if image < self.config.save_images else None for i, image in enumerate(images)]
        return list(zip(rows, kept, strict=True))

    def _score_again(self, point: Point, images: range) -> None:
        """Add the rewards that a finished unit lacks, from its kept pictures."""
        rows = self.records.rows(point.folder, images) or []
        missing = {name: reward for name, reward in self.rewards.items() if any(name not in row for row in rows)}
        files = {image: self.records.picture(point.folder, image) for image in images}
        lost = [file for file in files.values() if not file.exists()]
        if lost or not self.records.rounds_pictures:
            reason = (
                f"{lost[0]} was not kept" if lost else "an earlier version made it, which scored unrounded pictures"
            )
            raise ValueError(
                f"the reward {next(iter(missing))!r} cannot be added to {self.records.folder}: {reason}. Leave the reward "
                "out, or start a new folder; with save_images as large as images_per_point rewards can be added later"
            )

        def scored(part: range) -> list[Row]:
            pictures = torch.stack([read_picture(files[image]) for image in part])
            scores = score(missing, pictures, self._texts(part))
            return [{name: float(scores[name][i]) for name in missing} for i in range(len(part))]

        added = [entry for part in self.batches.run("scoring", images, scored) for entry in part]
        self.records.write_unit(point.folder, images, [a | b for a, b in zip(rows, added, strict=True)], {})

    def _texts(self, images: Sequence[int]) -> list[str]:
        return [self.prompts.prompts[image % len(self.prompts)] for image in images]

    def _chunk(self, images: Sequence[int]) -> Chunk:
        which = torch.tensor([image % len(self.prompts) for image in images])
        prompts, numbers = self.prompts.texts(which), [image // len(self.prompts) for image in images]
        shape = self.runner.network.base.latent_shape
        noise = [
            trajectory_noise(self.config.seed, ("sweep", prompt, number), self.config.steps, shape)
            for prompt, number in zip(prompts, numbers, strict=True)
        ]
        return Chunk(list(images), prompts, numbers, self.prompts.conditioning(which), torch.stack(noise))

    def rows(self) -> list[Row]:
        """A row per picture that the folder holds now, of every point that was ever asked for."""
        rows = [row for point in self.union() for row in self._labelled(point)]
        return join_scores(rows, self.records.folder / "external")

    def _labelled(self, point: Point) -> list[Row]:
        names = list(self.config.adapters)
        label = {
            "method": point.method,
            **{f"w_{name}": point.weights[i] if point.weights else None for i, name in enumerate(names)},
            "kl_scale": point.kl_scale,
        }
        units = [self.records.rows(point.folder, images) or [] for images in self._chunks(point.images)]
        return [{**label, **self._described(point, row)} for rows in units for row in rows]

    def _described(self, point: Point, row: Row) -> dict[str, Any]:
        image, file = row["image"], self.records.picture(point.folder, row["image"])
        scores = {name: row.get(name) for name in self.rewards}
        return {
            "image": image,
            "prompt": self._texts([image])[0],
            "number": image // len(self.prompts),
            **scores,
            **{key: value for key, value in row.items() if key not in ("image", *scores)},
            "settings": point.settings,
            "recipe": point.folder,
            "picture": str(file.relative_to(self.records.folder)) if file.exists() else "",
        }


def _png(image: Tensor) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, format="PNG")
    return content.getvalue()
