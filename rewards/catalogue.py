"""The list of rewards. A new reward is a file in this folder and a line here.

This file needs the standard library only, so that ComfyUI can list the rewards at its start without loading any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RewardEntry:
    """One reward.

    Attributes:
        module: the file in ``rewards/`` that holds it.
        attribute: the reward itself, or for a reward with a model the function that loads it.
        reads_prompt: whether it compares the image with the prompt.
        has_model: whether ``attribute`` takes a `sources.ModelRequest` and returns the reward.
    """

    module: str
    attribute: str
    reads_prompt: bool = False
    has_model: bool = True


CATALOGUE = {
    "image_reward": RewardEntry("image_reward", "load_image_reward", reads_prompt=True),
    "pick_score": RewardEntry("clip", "load_pick_score", reads_prompt=True),
    "clip_score": RewardEntry("clip", "load_clip_score", reads_prompt=True),
    "hps_v2": RewardEntry("clip", "load_hps_v2", reads_prompt=True),
    "aesthetic": RewardEntry("clip", "load_aesthetic"),
    "jpeg_compressibility": RewardEntry("pixels", "jpeg_compressibility", has_model=False),
    "jpeg_incompressibility": RewardEntry("pixels", "jpeg_incompressibility", has_model=False),
    "colourfulness": RewardEntry("pixels", "colourfulness", has_model=False),
}
"""Name -> entry, in the order in which people see them."""


@dataclass(frozen=True)
class MovedReward:
    """A reward of an earlier version that is now an example.

    Attributes:
        reason: why it moved, a sentence without its full stop.
        folder: the example's folder in this repository.
        function: how the trainer names it there, ``module:function``.
    """

    reason: str
    folder: str
    function: str


MOVED = {"vila": MovedReward("VILA needs TensorFlow in a Python of its own", "docs/examples/vila", "vila:vila")}
"""Name -> where the reward is now."""


def short_names(names: Iterable[str]) -> dict[str, str]:
    """A short name for each reward: the function of ``module:function``, the address of a server without its settings.

    Rewards whose short names are the same keep their whole names.

    Args:
        names: as in `check_names`.

    Returns:
        Name -> short name, all different, in order.
    """
    short = {name: name.partition("#")[0] if "://" in name else name.rpartition(":")[2] for name in names}
    counts = Counter(short.values())
    return {name: name if counts[text] > 1 else text for name, text in short.items()}


def check_names(names: list[str]) -> None:
    """Check that every reward is known, before anything is loaded.

    Args:
        names: names of the catalogue, ``module:function`` for a reward of one's own, or ``http://host:port/path`` for a
            server.

    Raises:
        ValueError: a name is unknown or belongs to an earlier version.
    """
    for name in names:
        if name in MOVED:
            moved = MOVED[name]
            raise ValueError(
                f"reward {name!r}: {moved.reason}, so it is now an example of a reward of your own: copy {moved.folder} into "
                f"the folder from which you run the command and write {moved.function} instead of {name}"
            )
        if ":" not in name and name not in CATALOGUE:
            raise ValueError(
                f"unknown reward {name!r}: choose from {', '.join(CATALOGUE)}, or module:function for your own, "
                "or http://host:port/path for a server"
            )
