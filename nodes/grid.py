"""The node Preference Grid: a sweep's images on a labelled sheet, and a Pareto figure of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..blending.preference import Preference
from .adapters.files import RewardLoRAs
from .engine.notices import notify
from .engine.score_table import Scores, joined
from .engine.sweep_points import labels as made_labels
from .engine.sweep_points import number, shares, used_adapters
from .figures.drawing import card, picture, tensor
from .figures.pareto import Point, pareto_figure
from .figures.sheet import Cell, contact_sheet, size_that_fits
from .figures.sheet_layout import arrange
from .keep_best import check_counts
from .schema import PreferenceType, ScoresType, make_schema, reward_loras_input


class PreferenceGrid(io.ComfyNode):
    """A labelled contact sheet, and a Pareto figure."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceGrid",
            display_name="Preference Grid",
            description="Collect the images of a Preference Sweep: a labelled sheet in the sweep's own shape (triangle, row, grid) and, with scores, a Pareto figure of the images.",
            search_aliases=[
                "contact sheet",
                "xy plot",
                "x/y plot",
                "compare",
                "pareto",
                "image grid",
                "diffusion blend",
            ],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The sweep's images, one batch a point; the first of each batch is shown."
                ),
                PreferenceType.Input("preferences", tooltip="The preferences of the same Preference Sweep."),
                io.Int.Input(
                    "thumbnail_size",
                    default=256,
                    min=64,
                    max=1024,
                    step=16,
                    tooltip="The longer side of an image on the sheet, in pixels.",
                ),
                io.String.Input(
                    "reward_across",
                    default="",
                    tooltip="Which scores go to the right in the Pareto figure, by name; empty takes the first.",
                ),
                io.String.Input(
                    "reward_up",
                    default="",
                    tooltip="Which scores go upwards in the Pareto figure, by name; empty takes the second.",
                ),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip="The labels of the same Preference Sweep; without them they are made from the preferences.",
                ),
                ScoresType.Input(
                    "scores",
                    optional=True,
                    tooltip="The images' scores, from Score Images: needed for the Pareto figure. A batch counts with its mean.",
                ),
                reward_loras_input(optional=True, tooltip="The adapters: their names are written at the corners."),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="The prompts of the images, where they differ: written below the images.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The labelled sheet."),
                io.Image.Output(
                    display_name="pareto",
                    tooltip="The images as points over two rewards, those that no other beats in both marked.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        preferences: list[Any],
        thumbnail_size: list[int],
        reward_across: list[str],
        reward_up: list[str],
        labels: list[str] | None = None,
        scores: list[Scores] | None = None,
        reward_loras: list[RewardLoRAs] | None = None,
        prompts: list[str] | None = None,
    ) -> io.NodeOutput:
        if reward_loras:
            preferences = [reward_loras[0].arrange(preference) for preference in preferences]
        names = _adapter_names(preferences, reward_loras)
        if scores is not None:
            check_counts(images, scores)
        if len(images) < len(preferences):
            raise ValueError(
                f"{len(images)} batches of images for {len(preferences)} preferences: connect the preferences of the sweep "
                "that made these images."
            )
        shown = labels or point_labels(preferences, len(names))
        if len(shown) != len(preferences):
            raise ValueError(
                f"{len(shown)} labels for {len(preferences)} preferences: connect the labels of the same sweep."
            )
        if len(images) > len(preferences):
            notify(
                f"There are {len(images)} batches of images for {len(preferences)} preferences: another list in the graph is "
                "longer than the sweep. ComfyUI repeated the last preference, and the sheet shows it so."
            )
        preferences, shown = _repeated(preferences, len(images)), _repeated(shown, len(images))
        pictures = [picture(batch[0]) for batch in images]
        means = None if scores is None else Scores(joined(scores).names, _columns([table.means() for table in scores]))
        texts = _repeated(prompts or [""], len(images))
        sheet = _sheet(pictures, preferences, shown, names, means, thumbnail_size[0], texts)
        pareto = _pareto(pictures, shown, names, means, (reward_across[0].strip(), reward_up[0].strip()))
        return io.NodeOutput(tensor(sheet), tensor(pareto))


def point_labels(preferences: Sequence[Any], adapters: int) -> list[str]:
    """The sweep's labels made again. Of preferences that are not plain the KL scales, or numbers from 1 where it is the same."""
    if all(isinstance(preference, Preference) for preference in preferences):
        return made_labels(preferences, adapters)
    scales = [{part.kl_scale for part in preference.parts} for preference in preferences]
    if all(len(each) == 1 for each in scales) and len(set().union(*scales)) > 1:
        return [f"kl {number(scale)}" for each in scales for scale in each]
    return [str(position) for position in range(1, len(preferences) + 1)]


def _adapter_names(preferences: Sequence[Any], loras: Sequence[RewardLoRAs] | None) -> list[str]:
    """The adapters' names, or numbers for as many as the weights speak of."""
    if loras:
        return loras[0].names
    plain = [preference for preference in preferences if isinstance(preference, Preference)]
    return [f"adapter {position}" for position in range(1, used_adapters(plain) + 1)]


def _sheet(
    pictures: Sequence[Image.Image],
    preferences: Sequence[Any],
    labels: Sequence[str],
    names: Sequence[str],
    means: Scores | None,
    size: int,
    prompts: Sequence[str],
) -> Image.Image:
    bars = len(names) > 1
    notes = [""] * len(pictures)
    if means is not None:
        notes = [" \u00b7 ".join(map(_short, row)) for row in _columns(means.columns)]
    if len(set(prompts)) > 1:
        notes = [" \u00b7 ".join(filter(None, (" ".join(prompt.split()), note)))
                 for prompt, note in zip(prompts, notes, strict=True)]  # fmt: skip
    cells = [
        Cell(image, label, shares(preference, len(names)) if bars and isinstance(preference, Preference) else (), note)
        for image, preference, label, note in zip(pictures, preferences, labels, notes, strict=True)
    ]
    footer = "" if means is None else f"scores: {', '.join(means.names)}"
    layout = arrange(preferences, len(names))
    fits = size_that_fits(cells, layout, size)
    if fits < size:
        notify(
            f"{len(cells)} images of {size} pixels make a sheet that is too large to save: they are drawn at {fits} pixels."
        )
    return contact_sheet(cells, layout, names, fits, footer)


def _pareto(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    names: Sequence[str],
    means: Scores | None,
    wanted: tuple[str, str],
) -> Image.Image:
    if means is None:
        return card(
            "No scores, no Pareto figure",
            ["Connect scores: two Score Images, one after the other,", "each with a Load Reward Model."],
        )
    across_name = wanted[0] or next((name for name in means.names if name != wanted[1]), means.names[0])
    up_name = wanted[1] or next((name for name in means.names if name != across_name), "")
    if not up_name:
        return card(
            "One reward alone has no trade-off",
            [f"The scores are of {means.names[0]} only.", "Chain a second Score Images with another reward."],
        )
    across, up = means.column(across_name), means.column(up_name)
    points = [Point(image, label, x, y) for image, label, x, y in zip(pictures, labels, across, up, strict=True)]
    footer = f"w: {', '.join(names)}" if len(names) > 1 else ""
    return pareto_figure(points, across_name, up_name, footer)


def _repeated(items: Sequence[Any], count: int) -> list[Any]:
    """A list with its last item repeated, as the host does where another list is longer."""
    return [items[min(position, len(items) - 1)] for position in range(count)]


def _columns(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Rows turned into columns, or back."""
    return tuple(zip(*rows, strict=True))


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
