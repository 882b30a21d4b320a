"""Write the test prompts of ``configs/paper``: ``python tools/make_paper_prompts.py``. None of them is a training prompt."""

from __future__ import annotations

import random
from pathlib import Path

from diffusion_blend.training.geneval import geneval_prompts
from diffusion_blend.training.prompts import SHORT_DRAWBENCH

FOLDER = Path(__file__).resolve().parents[1] / "configs/paper"
COLOURS = (  # noqa: SIM905  (quoted strings would say less)
    "red, blue, green, yellow, black, white, brown, pink, orange, purple, grey, gold, silver, turquoise"
).split(", ")
OBJECTS = (  # noqa: SIM905
    "car, dog, banana, sandwich, giraffe, sheep, bird, bear, apple, backpack, cup, cell phone, book, vase, cat, horse, cow, "
    "truck, bus, bicycle, boat, chair, couch, clock, umbrella, suitcase, bowl, bottle, lamp, teapot, orange, carrot, cake, "
    "hat, shoe, kite, guitar, laptop, pillow, mug, rabbit, elephant, zebra, duck, frog, fish"
).split(", ")
DRAWBENCH_TEST, GENEVAL_TRAIN, GENEVAL_TEST = 1000, 550, 700


def drawbench_test(count: int, seed: int = 0) -> list[str]:
    """Prompts like Short-DrawBench's: one colored object, or two of different colors, taking turns."""
    draw, prompts = random.Random(seed), dict[str, None]()
    while len(prompts) < count:
        (first, second), (one, two) = draw.sample(COLOURS, 2), draw.sample(OBJECTS, 2)
        text = (
            f"{_a(first)} colored {one}." if len(prompts) % 2 else f"{_a(first)} {one} and {_a(second).lower()} {two}."
        )
        if text not in SHORT_DRAWBENCH:
            prompts.setdefault(text)
    return list(prompts)


def _a(word: str) -> str:
    return f"{'An' if word[0] in 'aeiou' else 'A'} {word}"


def geneval_test(count: int) -> list[str]:
    """Prompts of GenEval's families that the training set, ``geneval`` with 550 prompts and seed 0, does not have."""
    trained = set(geneval_prompts(GENEVAL_TRAIN, 0))
    longer = geneval_prompts(2 * (count + GENEVAL_TRAIN), 1)
    return [prompt for prompt in longer if prompt not in trained][:count]


def main() -> None:
    """Write both files."""
    head = "# Test prompts, made by tools/make_paper_prompts.py; none is in the training set.\n"
    for name, prompts in (
        ("short_drawbench_test.txt", drawbench_test(DRAWBENCH_TEST)),
        ("geneval_test.txt", geneval_test(GENEVAL_TEST)),
    ):
        (FOLDER / name).write_text(head + "\n".join(prompts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
