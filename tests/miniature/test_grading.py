"""Grades: exact pictures score highest, and every kind of mistake costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusion_blend.miniature.grading import grade
from diffusion_blend.miniature.language import KINDS, read, sample
from diffusion_blend.miniature.parser import Found, parse
from diffusion_blend.miniature.renderer import HUES, render, sample_scene
from hypothesis import given, settings
from hypothesis import strategies as st

FITS = {"circle": (0.95, 0.8, 0.5), "square": (0.8, 1.0, 0.5), "triangle": (0.5, 0.5, 0.95)}


def seen(colour: str, shape: str, x: float = 16, y: float = 16) -> Found:
    return Found(colour, shape, HUES[colour], FITS[shape], x, y, 60)


def test_a_perfect_picture_scores_one():
    result = grade(
        [seen("red", "circle", 8, 4), seen("blue", "square", 8, 24)], read("a red circle above a blue square")
    )
    assert result.score == pytest.approx(1.0) and result.exact and result.things


@pytest.mark.parametrize(
    ("found", "prompt", "score"),
    [
        ([], "a red circle", 0.0),
        ([seen("green", "circle")], "a red circle", 0.0),  # 120 degrees away: nothing alike
        ([seen("red", "triangle")], "a red circle", 0.5),  # the colour is half
        ([seen("red", "circle")], "two red circles", 0.5),  # one is missing
        ([seen("red", "circle", x) for x in (6, 16, 26)], "two red circles", 2 / 3),  # one too many
        ([seen("red", "circle"), seen("red", "square")], "a red circle and a blue square", 0.5),
        ([seen("red", "circle", 16, 28)], "a red circle at the top", 0.7),  # only the place is wrong
        ([seen("red", "circle")], "a red circle above a blue square", 0.35),  # and no relation without the second
    ],
)
def test_mistakes_by_hand(found, prompt, score):
    result = grade(found, read(prompt))
    assert result.score == pytest.approx(score)
    assert not result.exact


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.randoms())
def test_the_order_in_which_things_are_found_does_not_matter(seed, random):
    generator = np.random.default_rng(seed)
    found = parse(render([sample_scene(sample(generator), generator)], torch.Generator().manual_seed(seed)))[0]
    description = sample(generator)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert grade(shuffled, description).score == pytest.approx(grade(found, description).score)
    assert 0 <= grade(found, description).score <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_score_higher_on_their_own_prompt(kind):
    generator = np.random.default_rng(7)
    wanted = [sample(generator, kind=kind) for _ in range(40)]
    found = parse(render([sample_scene(description, generator) for description in wanted], torch.Generator()))
    own = [grade(things, description).score for things, description in zip(found, wanted, strict=True)]
    other = [
        grade(things, description).score for things, description in zip(found, wanted[1:] + wanted[:1], strict=True)
    ]
    assert min(own) > 0.7
    assert all(mine >= theirs for mine, theirs in zip(own, other, strict=True))


def test_the_grade_falls_by_degrees():
    # The hue turns away, and then the thing moves to the wrong side: never a rise, and several distinct values.
    description = read("a red circle on the left")
    hues = [grade([replace(seen("red", "circle", 8), hue=h)], description).score for h in (0, 10, 20, 40, 60, 90)]
    places = [grade([seen("red", "circle", x)], description).score for x in (10, 13, 15, 17, 19, 24)]
    for scores in (hues, places):
        assert scores == sorted(scores, reverse=True) and len(set(scores)) >= 4
