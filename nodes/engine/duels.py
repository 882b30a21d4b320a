"""A duel of two preferences: which two are shown after the votes so far, and what the votes taught."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...blending.preference import Preference
from ..figures.drawing import picture
from .sweep_points import labels

KEPT = "diffusion_blend_taste/picture"
"""The prefix of kept pictures in the output folder."""
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
SAME_NOISE, NEW_NOISE = SEED_MODES = ("same noise", "new noise")


@dataclass(frozen=True)
class Duel:
    """Two preferences to choose from.

    Args:
        names: the adapters'.
        votes: the text of the votes so far, as it was given.
        count: the number of votes in it.
        pair: the two preferences.
        texts: the two options in the language of the votes.
        best: the preference that the votes favour.
        narrow: the line that a narrower search begins with.
        learned: see `landscape.landscape`.
        files: the adapters' files, in order; none where they are not known.
    """

    names: tuple[str, ...]
    votes: str
    count: int
    pair: tuple[Preference, Preference]
    texts: tuple[str, str]
    best: Preference
    narrow: str
    learned: dict[str, Any] = field(repr=False)
    files: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Short names of the two preferences."""
        return labels(self.pair, len(self.names))

    def described(self) -> dict[str, Any]:
        """Plain data for the view in the browser."""
        return {
            "names": list(self.names),
            "files": list(self.files),
            "votes": self.votes,
            "count": self.count,
            "options": list(self.texts),
            "pair": [[*preference.weights, preference.kl_scale] for preference in self.pair],
            "labels": self.labels,
            "narrow": self.narrow,
            **self.learned,
        }


def make_duel(names: list[str], votes: str, kl_range: tuple[float, float], start: Preference | None) -> Duel:
    """Read the votes and choose the next two preferences.

    Args:
        names: the adapters', at least two.
        votes: their text, see `preference_learning.votes.read`.
        kl_range: the smallest and the largest KL scale.
        start: one weight per adapter, or None.

    Raises:
        ValueError: fewer than two adapters, a KL range in the wrong order, or votes that cannot be read.
    """
    # Imported here, because a start of ComfyUI shall not pay for scipy.
    from ...preference_learning.landscape import SMALLEST_REGION, landscape
    from ...preference_learning.search import Search, proposed, votes_of
    from ...preference_learning.votes import Narrowing, Option, read

    if len(names) < 2:
        raise ValueError(f"A duel needs at least 2 adapters and got {len(names)}: load another LoRA.")
    low, high = kl_range
    if low > high:
        raise ValueError(f"kl_scale_from is {low} and kl_scale_to is {high}: the first must not be larger.")
    begin = None if start is None else Option(_shares(start), min(max(start.kl_scale, low), high))
    search = Search(len(names), low, high, begin)
    entries = read(votes, len(names), lambda before: proposed(search, tuple(before)))
    posterior = search.posterior(entries)
    pair = search.next_pair(entries, posterior)
    learned = landscape(search, entries, posterior)
    best = Option(tuple(learned["best"]["weights"]), learned["best"]["kl_scale"])
    within = max(SMALLEST_REGION, search.region(entries).within / 2)
    return Duel(
        tuple(names),
        votes,
        len(votes_of(entries)),
        (Preference(pair[0].weights, pair[0].kl_scale), Preference(pair[1].weights, pair[1].kl_scale)),
        (pair[0].text(), pair[1].text()),
        Preference(best.weights, best.kl_scale),
        Narrowing(best, within).text(),
        learned,
    )


def save_pictures(images: Tensor, option: str) -> None:
    """Save pictures in the output folder with a text chunk that names their option, for ``diffusion-blend taste``.

    Args:
        images: float[B, H, W, 3] in 0..1.
        option: in the language of the votes.
    """
    from ...preference_learning.votes import PICTURE_OPTION

    height, width = images.shape[1:3]
    place = folder_paths.get_save_image_path(KEPT, folder_paths.get_output_directory(), width, height)
    folder, name, counter = place[0], place[1], place[2]
    for number, image in enumerate(images, counter):
        chunk = PngInfo()
        chunk.add_text(PICTURE_OPTION, option)
        picture(image).save(Path(folder) / f"{name}_{number:05}_.png", pnginfo=chunk)


def seed_of(seed: int, mode: str, votes: int) -> int:
    """The seed of both pictures: always the same one, or another one for every duel."""
    return seed if mode == SAME_NOISE else (seed + votes) % (LARGEST_SEED + 1)


def _shares(preference: Preference) -> tuple[float, ...]:
    total = sum(preference.weights)
    if total <= 0:
        raise ValueError("All weights of start are 0: raise at least one.")
    return tuple(weight / total for weight in preference.weights)
