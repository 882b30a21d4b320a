"""The prompts of the miniature world: a closed grammar of coloured shapes, counts and positions.

Every prompt is a `Description`, every `Description` has exactly one wording, and `read(write(d)) == d`. A fixed part of
the combinations is held out: no training prompt contains them, so accuracy on them measures composition, not memory.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle")
COUNTS = {"two": 2, "three": 3}
RELATIONS = ("above", "below", "left of", "right of")
PLACES = ("at the top", "at the bottom", "on the left", "on the right")
KINDS = ("single", "placed", "counted", "pair", "related")
# A small model finds relations and counts hard, so they get more of the training pictures.
KIND_SHARES = (0.12, 0.13, 0.20, 0.22, 0.33)
# One in 8 pairs and one in 6 counted things are never trained on.
HELD_OUT_PAIRS_ONE_IN = 8
HELD_OUT_COUNTS_ONE_IN = 6


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Description:
    """What a prompt asks for: its things in order, and at most one of a relation (first to second) and a place."""

    things: tuple[Thing, ...]
    relation: str | None = None
    place: str | None = None

    @property
    def kind(self) -> str:
        """Which of `KINDS` this is."""
        if len(self.things) == 1:
            return "placed" if self.place else "single"
        if self.relation:
            return "related"
        return "counted" if len(set(self.things)) == 1 else "pair"


def all_things() -> list[Thing]:
    """Every colour with every shape, in a fixed order."""
    return [Thing(colour, shape) for colour, shape in itertools.product(COLOURS, SHAPES)]


def descriptions(kind: str) -> list[Description]:
    """Every description of one kind, in a fixed order.

    Raises:
        ValueError: the kind is not one of `KINDS`.
    """
    things = all_things()
    if kind == "single":
        return [Description((thing,)) for thing in things]
    if kind == "placed":
        return [Description((thing,), place=place) for thing in things for place in PLACES]
    if kind == "counted":
        return [Description((thing,) * count) for thing in things for count in COUNTS.values()]
    if kind == "pair":
        return [Description(pair) for pair in itertools.permutations(things, 2)]
    if kind == "related":
        return [
            Description(pair, relation=relation) for pair in itertools.permutations(things, 2) for relation in RELATIONS
        ]
    raise ValueError(f"Unknown kind of description {kind!r}: use one of {', '.join(KINDS)}.")


def is_held_out(description: Description) -> bool:
    """Whether this combination is held out of training. It is a property of the words and does not depend on a seed.

    Pairs are held out as a set of two things, so all their orders and relations are held out together.
    """
    things = description.things
    if len(things) == 1:
        return False
    key = "|".join(sorted(f"{thing.colour} {thing.shape}" for thing in things))
    one_in = HELD_OUT_COUNTS_ONE_IN if description.kind == "counted" else HELD_OUT_PAIRS_ONE_IN
    return zlib.crc32(key.encode()) % one_in == 0


def training_descriptions() -> list[Description]:
    """Every description that training may draw, in a fixed order."""
    return [one for kind in KINDS for one in descriptions(kind) if not is_held_out(one)]


def write(description: Description) -> str:
    """The prompt of a description, for example ``"a red circle above a blue square"``."""
    things = description.things
    if len(things) == 1:
        place = f" {description.place}" if description.place else ""
        return f"a {things[0].colour} {things[0].shape}{place}"
    if description.kind == "counted":
        word = next(word for word, count in COUNTS.items() if count == len(things))
        return f"{word} {things[0].colour} {things[0].shape}s"
    first, second = (f"a {thing.colour} {thing.shape}" for thing in things)
    return f"{first} {description.relation or 'and'} {second}"


def read(prompt: str) -> Description:
    """The description that a prompt states.

    Raises:
        ValueError: the prompt is not in this world's grammar.
    """
    description = _readings().get(" ".join(prompt.lower().split()))
    if description is None:
        raise ValueError(
            f"{prompt!r} is not a prompt of the miniature world: write for example 'a red circle', 'two blue squares', "
            f"'a red circle above a green triangle' or 'a cyan square on the left', with the colours "
            f"{', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}."
        )
    return description


_READINGS: dict[str, Description] = {}


def _readings() -> dict[str, Description]:
    # Filled on the first reading: import time does nothing.
    if not _READINGS:
        _READINGS.update({write(description): description for kind in KINDS for description in descriptions(kind)})
    return _READINGS


def sample(
    generator: np.random.Generator,
    held_out: bool = False,
    kind: str | None = None,
    shares: Sequence[float] = KIND_SHARES,
) -> Description:
    """Draw a description: from the training combinations, or from those held out.

    Args:
        generator: the source of randomness.
        held_out: draw a held-out combination (a count, a pair or a relation) instead of a training one.
        kind: one of `KINDS`; by default drawn.
        shares: weight of each of `KINDS` where the kind is drawn.

    Raises:
        ValueError: a held-out draw of a kind that holds nothing out.
    """
    if held_out and kind in ("single", "placed"):
        raise ValueError(f"No {kind} description is held out: ask for a counted, pair or related one.")
    if kind is None:
        first = 2 if held_out else 0
        weights = shares[first:]
        kind = str(generator.choice(KINDS[first:], p=[weight / sum(weights) for weight in weights]))
    things = all_things()
    while True:
        description = _draw(generator, kind, things)
        if is_held_out(description) == held_out:
            return description


def _draw(generator: np.random.Generator, kind: str, things: list[Thing]) -> Description:
    first, second = generator.choice(len(things), size=2, replace=False)
    one, two = things[first], things[second]
    if kind == "single":
        return Description((one,))
    if kind == "placed":
        return Description((one,), place=str(generator.choice(PLACES)))
    if kind == "counted":
        return Description((one,) * int(generator.choice(list(COUNTS.values()))))
    if kind == "pair":
        return Description((one, two))
    return Description((one, two), relation=str(generator.choice(RELATIONS)))
