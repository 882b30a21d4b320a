"""Prompt sets: Short-DrawBench, a GenEval-style generator, or one's own text file."""

from __future__ import annotations

import random

from ..artifacts.files import find_file
from .geneval import geneval_prompts

SHORT_DRAWBENCH: tuple[str, ...] = (
    "A red colored car.",
    "A black colored car.",
    "A pink colored car.",
    "A black colored dog.",
    "A red colored dog.",
    "A blue colored dog.",
    "A green colored banana.",
    "A red colored banana.",
    "A black colored banana.",
    "A white colored sandwich.",
    "A black colored sandwich.",
    "An orange colored sandwich.",
    "A pink colored giraffe.",
    "A yellow colored giraffe.",
    "A brown colored giraffe.",
    "A red car and a white sheep.",
    "A blue bird and a brown bear.",
    "A green apple and a black backpack.",
    "A green cup and a blue cell phone.",
    "A yellow book and a red vase.",
    "A white car and a red sheep.",
    "A brown bird and a blue bear.",
    "A black apple and a green backpack.",
    "A blue cup and a green cell phone.",
    "A red book and a yellow vase.",
)
"""The 25 colour prompts of DrawBench (Saharia et al. 2022, arXiv 2205.11487), the paper's small training set."""


def load_prompts(source: str, count: int, seed: int) -> list[str]:
    """Get the prompts that a configuration names.

    Args:
        source: ``short_drawbench``, ``geneval``, or a text file with one prompt per line (``#`` starts a comment).
        count: how many to generate (``geneval``); for the others 0 takes all and n takes a random n.
        seed: of the generator or of the choice.

    Returns:
        Prompts without repetition.

    Raises:
        ValueError: a source that is neither a known name nor a readable text file, an empty file, or a count that
            the source cannot give.
    """
    if source == "geneval":
        return geneval_prompts(count, seed)
    prompts = list(SHORT_DRAWBENCH) if source == "short_drawbench" else _read(source)
    if count > len(prompts):
        raise ValueError(f"{count} prompts wanted of {source}, which has {len(prompts)}: lower the count, or 0 for all")
    return random.Random(seed).sample(prompts, count) if count else prompts


def _read(source: str) -> list[str]:
    path = find_file(source)
    if not path.is_file():
        raise ValueError(f"prompts {source!r}: not short_drawbench, not geneval and no such text file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {source}: not UTF-8 text ({error}); save it as UTF-8") from error
    stripped = (line.strip() for line in lines)
    prompts = list(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
    if not prompts:
        raise ValueError(f"prompt file {source}: no prompts in it; write one per line")
    return prompts
