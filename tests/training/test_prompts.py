"""Prompt sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusion_blend.training.geneval import COLOURS, COUNTS, FAMILIES, MOST, OBJECTS, POSITIONS, geneval_prompts
from diffusion_blend.training.prompt_table import PromptTable
from diffusion_blend.training.prompts import SHORT_DRAWBENCH, load_prompts
from diffusion_blend.training.randomness import keyed_generator
from gaussian_model import GaussianModel


def test_short_drawbench() -> None:
    assert load_prompts("short_drawbench", 0, 0) == list(SHORT_DRAWBENCH)
    assert len(set(SHORT_DRAWBENCH)) == 25
    assert all(any(colour in prompt for colour in COLOURS) for prompt in SHORT_DRAWBENCH)
    chosen = load_prompts("short_drawbench", 5, 1)
    assert len(set(chosen)) == 5 and set(chosen) <= set(SHORT_DRAWBENCH)


def family(prompt: str) -> str:
    """Which task a prompt belongs to, read off its words alone."""
    body = prompt.removeprefix("a photo of ")
    if any(f" {position} " in body for position in POSITIONS):
        return "position"
    if body.split()[0] in COUNTS:
        return "counting"
    coloured = sum(f"{colour} " in body for colour in COLOURS)
    if " and " in body:
        return "color_attr" if coloured else "two_object"
    return "colors" if coloured else "single_object"


def test_geneval_has_six_families_in_even_shares() -> None:
    prompts = geneval_prompts(240, 3)
    assert len(set(prompts)) == 240
    counts = {name: sum(family(prompt) == name for prompt in prompts) for name in FAMILIES}
    # "orange" is an object too, so a few single objects read as colours; single objects run out at 79
    assert all(30 <= count <= 50 for count in counts.values()), counts
    assert sum(counts.values()) == 240


def test_geneval_is_a_function_of_its_seed_and_grows_at_the_end() -> None:
    assert geneval_prompts(30, 1) == geneval_prompts(60, 1)[:30]
    assert geneval_prompts(30, 1) != geneval_prompts(30, 2)
    assert len(OBJECTS) == len(set(OBJECTS)) == 80


def test_geneval_can_give_as_many_as_the_benchmark() -> None:
    assert len(set(geneval_prompts(553, 0))) == 553


def test_grammar() -> None:
    prompts = geneval_prompts(600, 5)
    assert not any(" a a" in p or " a e" in p or " a i" in p or " a o" in p or " an b" in p for p in prompts)
    words = {word for prompt in prompts if family(prompt) == "counting" for word in prompt.split()}
    assert not {"knifes", "buss", "sheeps", "mouses", "benchs", "sandwichs", "scissorss"} & words


def test_own_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\na cat\n\n  a dog \na cat\n")
    assert load_prompts(str(file), 0, 0) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no prompts in it"), (b"# only this\n\n", "no prompts in it"), (b"\xff\xfe", "UTF-8")],
)
def test_useless_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(file), 0, 0)


def test_unknown_sources_and_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such text file"):
        load_prompts(str(tmp_path / "none.txt"), 0, 0)
    with pytest.raises(ValueError, match="26 prompts wanted"):
        load_prompts("short_drawbench", 26, 0)
    with pytest.raises(ValueError, match="at least 1"):
        load_prompts("geneval", 0, 0)
    with pytest.raises(ValueError, match=rf"at most {MOST}, the number of different ones"):
        geneval_prompts(MOST + 1, 0)


class Scripted:
    """In place of a random generator: makes the choices that it is given, in order."""

    def __init__(self, choices: Sequence[Any]) -> None:
        self._choices = iter(choices)

    def choice(self, _: Any) -> Any:
        return next(self._choices)

    def sample(self, _: Any, __: int) -> Any:
        return next(self._choices)


def test_the_number_of_different_prompts() -> None:
    coloured = [name for name in OBJECTS if name != "person"]
    pairs = list(permutations(OBJECTS, 2))
    choices: dict[str, Iterable[Any]] = {
        "single_object": product(OBJECTS),
        "two_object": product(pairs),
        "counting": product(COUNTS, OBJECTS),
        "colors": product(COLOURS, coloured),
        "position": product(pairs, POSITIONS),
        "color_attr": product(permutations(coloured, 2), list(permutations(COLOURS, 2))),
    }
    everything: set[str] = set()
    for name, make in FAMILIES.items():
        everything.update(make(cast("Any", Scripted(chosen))) for chosen in choices[name])
    assert len(everything) == MOST


@pytest.mark.parametrize(("first", "count"), [(0, 5), (3, 9), (7, 1), (4, 2)])
def test_sections_of_the_endless_list_go_through_all_prompts_in_every_pass(first: int, count: int) -> None:
    table = PromptTable(GaussianModel(0.0, 1.0), [str(i) for i in range(5)])
    passes = [torch.randperm(5, generator=keyed_generator(7, "prompts", number)).tolist() for number in range(3)]
    everything = [row for order in passes for row in order]
    assert table.shuffled_rows(7, first, count).tolist() == everything[first : first + count]
