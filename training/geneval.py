"""Prompts after GenEval's six task families (Ghosh et al. 2023, arXiv 2310.11513)."""

from __future__ import annotations

import random
from collections.abc import Callable

OBJECTS = (  # noqa: SIM905  (79 quoted strings would say less)
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
"""The object classes of COCO (Lin et al. 2014, arXiv 1405.0312), as GenEval names them."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COUNTS = ("two", "three", "four")
POSITIONS = ("left of", "right of", "above", "below")
_PLURALS = {"knife": "knives", "person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors"}
_COLOURABLE = [name for name in OBJECTS if name != "person"]
MOST = len(OBJECTS) * (1 + (len(OBJECTS) - 1) * (1 + len(POSITIONS)) + len(COUNTS)) + len(COLOURS) * len(
    _COLOURABLE
) * (1 + (len(COLOURS) - 1) * (len(_COLOURABLE) - 1))
"""The number of different prompts: one object, two, counted ones, placed ones, coloured ones and two coloured ones."""


def geneval_prompts(count: int, seed: int) -> list[str]:
    """Generate prompts, the six families taking turns: single object, two objects, counting, colours, position,
    colour attribution.

    Args:
        count: how many, at least 1.
        seed: the same seed gives the same prompts, and a longer list starts with the shorter one.

    Returns:
        Prompts without repetition.

    Raises:
        ValueError: a count below 1, or above the number of different prompts.
    """
    if not 1 <= count <= MOST:
        raise ValueError(
            f"{count} GenEval prompts (prompts.count): ask for at least 1 and at most {MOST}, the number of different ones (the "
            "benchmark itself has 553)"
        )
    generator = random.Random(seed)
    prompts: dict[str, None] = {}
    families = list(FAMILIES.values())
    turn = 0
    while len(prompts) < count:
        # A family that has run dry (80 single objects) gives repetitions: they are dropped and the next takes over.
        prompts.setdefault(families[turn % len(families)](generator))
        turn += 1
    return list(prompts)


def _single(generator: random.Random) -> str:
    return f"a photo of {_article(generator.choice(OBJECTS))}"


def _two(generator: random.Random) -> str:
    first, second = generator.sample(OBJECTS, 2)
    return f"a photo of {_article(first)} and {_article(second)}"


def _counting(generator: random.Random) -> str:
    return f"a photo of {generator.choice(COUNTS)} {_plural(generator.choice(OBJECTS))}"


def _colours(generator: random.Random) -> str:
    return f"a photo of {_article(f'{generator.choice(COLOURS)} {generator.choice(_COLOURABLE)}')}"


def _position(generator: random.Random) -> str:
    first, second = generator.sample(OBJECTS, 2)
    return f"a photo of {_article(first)} {generator.choice(POSITIONS)} {_article(second)}"


def _attribution(generator: random.Random) -> str:
    first, second = generator.sample(_COLOURABLE, 2)
    colours = generator.sample(COLOURS, 2)
    return f"a photo of {_article(f'{colours[0]} {first}')} and {_article(f'{colours[1]} {second}')}"


FAMILIES: dict[str, Callable[[random.Random], str]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colours,
    "position": _position,
    "color_attr": _attribution,
}
"""GenEval's own names of its families, with the generator of each."""


def _article(noun: str) -> str:
    if noun in ("skis", "scissors"):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _plural(noun: str) -> str:
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("mouse"):
        return noun.removesuffix("mouse") + "mice"
    if noun.endswith(("s", "sh", "ch", "ss")):
        return noun + "es"
    return noun + "s"
