"""The node Keep Best: the best images by a preference over rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from .engine.score_table import Scores, joined, utilities
from .schema import ScoresType, make_schema, weight_input

AMONG = ("all together", "each batch")
SCALES = ("z-scores", "raw")


class KeepBest(io.ComfyNode):
    """Of a batch, of every batch, or of a whole sweep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="KeepBest",
            display_name="Keep Best",
            description="Keep the images that score best, by how much each reward counts.",
            search_aliases=["best of n", "best image", "aesthetic score", "rank", "filter images", "diffusion blend"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The images: one batch, or all the images of a sweep."),
                ScoresType.Input("scores", tooltip="Their scores, from Score Images."),
                *(_weight_input(position) for position in range(1, 5)),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default=SCALES[0],
                    tooltip="z-scores: each reward minus its mean over the images, divided by its spread, so that rewards of any size count alike. raw: the scores as they are.",
                ),
                io.Int.Input("count", default=1, min=1, max=4096, tooltip="How many images are kept."),
                io.Combo.Input(
                    "among",
                    options=list(AMONG),
                    default=AMONG[0],
                    tooltip="all together: the best of everything connected. each batch: the best of every batch of a sweep, so one result a point.",
                ),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip="The labels of Preference Sweep, one a batch: the report then says which preference won.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The best first. Images of different sizes come one by one.",
                ),
                ScoresType.Output(display_name="scores", is_output_list=True, tooltip="The scores of the images kept."),
                io.String.Output(
                    display_name="indices",
                    tooltip='Which images they are, counted from 0 over everything connected: "3, 0".',
                ),
                io.String.Output(display_name="report", tooltip="The images kept, with their scores, for reading."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        scores: list[Scores],
        weight_1: list[float],
        weight_2: list[float],
        weight_3: list[float],
        weight_4: list[float],
        scale: list[str],
        count: list[int],
        among: list[str],
        labels: list[str] | None = None,
    ) -> io.NodeOutput:
        check_counts(images, scores)
        names = _names(images, labels)
        table = joined(scores)
        weights = (weight_1[0], weight_2[0], weight_3[0], weight_4[0])
        values = utilities(table, weights, standardise=scale[0] == SCALES[0])
        kept = best(values, [len(batch) for batch in images], count[0], together=among[0] == AMONG[0])
        single = [image for batch in images for image in batch]
        groups = [part for group in kept for part in _same_size(group, single)]
        indices = [i for group in kept for i in group]
        return io.NodeOutput(
            [torch.stack([single[i] for i in group]) for group in groups],
            [table.rows(group) for group in groups],
            ", ".join(map(str, indices)),
            "\n".join(_line(i, names[i], values[i], table) for i in indices),
        )


def check_counts(images: Sequence[Tensor], scores: Sequence[Scores]) -> None:
    """See that every image has its scores.

    Args:
        images: batches.
        scores: one table a batch.

    Raises:
        ValueError: the number of batches, or of a batch's images, differs from that of the scores.
    """
    if len(images) != len(scores):
        raise ValueError(
            f"{len(images)} batches of images, but scores of {len(scores)}: connect the images that Score Images scored."
        )
    for number, (batch, table) in enumerate(zip(images, scores, strict=True), 1):
        if len(batch) != len(table):
            raise ValueError(
                f"Batch {number} has {len(batch)} images, but there are scores of {len(table)}: connect the images that "
                "Score Images scored."
            )


def best(values: Sequence[float], sizes: Sequence[int], count: int, together: bool) -> list[list[int]]:
    """The images of largest value, the largest first; of equal ones, the earlier first.

    Args:
        values: one an image, the batches one after another.
        sizes: of the batches.
        count: how many to keep.
        together: of everything; else of each batch.

    Returns:
        Indices into ``values``: one group, or one a batch.

    Raises:
        ValueError: there are fewer images than to be kept.
    """
    sizes = [sum(sizes)] if together else sizes
    groups, start = [], 0
    for size in sizes:
        if size < count:
            where = "" if together else " in a batch"
            raise ValueError(f"count is {count}, but there are only {size} images{where}: lower it.")
        groups.append(sorted(range(start, start + size), key=lambda i: (-values[i], i))[:count])
        start += size
    return groups


def _same_size(group: list[int], images: Sequence[Tensor]) -> list[list[int]]:
    """One batch if the images allow it, else one by one."""
    return [group] if len({images[i].shape for i in group}) == 1 else [[i] for i in group]


def _names(images: Sequence[Tensor], labels: Sequence[str] | None) -> list[str]:
    """What to call every image in the report."""
    if labels is None:
        return ["" for batch in images for _ in batch]
    if len(labels) != len(images):
        raise ValueError(
            f"{len(labels)} labels for {len(images)} batches of images: connect the labels of the sweep that made them."
        )
    return [label for batch, label in zip(images, labels, strict=True) for _ in batch]


def _line(index: int, name: str, value: float, table: Scores) -> str:
    scores = ", ".join(
        f"{reward} {column[index]:.4g}" for reward, column in zip(table.names, table.columns, strict=True)
    )
    return f"image {index}" + (f" ({name})" if name else "") + f": {value:.3f} from {scores}"


def _weight_input(position: int) -> Any:
    tooltip = f"How much reward {position} of the scores counts, relative to the sum of all weights."
    return weight_input(position, 1.0 if position == 1 else 0.0, tooltip)
