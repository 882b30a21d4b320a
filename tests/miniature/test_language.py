"""The grammar: every description has one wording, and what is held out stays out of training."""

from __future__ import annotations

import numpy as np
import pytest
from diffusion_blend.miniature import language
from diffusion_blend.miniature.language import Description, Thing


@pytest.mark.parametrize("kind", language.KINDS)
def test_reading_inverts_writing(kind):
    every = language.descriptions(kind)
    assert [language.read(language.write(description)) for description in every] == every
    assert {description.kind for description in every} == {kind}


def test_wordings_are_distinct_and_counted():
    prompts = [language.write(description) for kind in language.KINDS for description in language.descriptions(kind)]
    assert len(set(prompts)) == len(prompts) == 18 + 18 * 4 + 18 * 2 + 18 * 17 + 18 * 17 * 4


def test_hand_written_prompts():
    red, blue = Thing("red", "circle"), Thing("blue", "square")
    assert language.read("  A red  circle above a blue square ") == Description((red, blue), relation="above")
    assert language.read("three red circles") == Description((red, red, red))
    assert language.read("a blue square on the left") == Description((blue,), place="on the left")


def test_held_out_pairs_are_held_out_in_every_order_and_relation():
    for pair in language.descriptions("pair"):
        first, second = pair.things
        same = {language.is_held_out(Description((second, first)))}
        same |= {language.is_held_out(Description((first, second), relation=words)) for words in language.RELATIONS}
        same |= {language.is_held_out(Description((second, first), relation=words)) for words in language.RELATIONS}
        assert same == {language.is_held_out(pair)}


@pytest.mark.parametrize("held_out", [False, True])
def test_samples_are_on_the_side_asked_for(held_out):
    generator = np.random.default_rng(0)
    drawn = [language.sample(generator, held_out) for _ in range(2000)]
    assert {language.is_held_out(description) for description in drawn} == {held_out}
    kinds = {description.kind for description in drawn}
    assert kinds == set(language.KINDS[2:] if held_out else language.KINDS)


def test_every_thing_is_trained_on_alone_and_in_pairs():
    trained = [pair for pair in language.descriptions("pair") if not language.is_held_out(pair)]
    assert {thing for pair in trained for thing in pair.things} == set(language.all_things())
    assert not any(language.is_held_out(single) for single in language.descriptions("single"))


def test_errors_say_what_to_write():
    with pytest.raises(ValueError, match=r"'a red dog' is not a prompt.*'a red circle'.*purple.*triangle"):
        language.read("a red dog")
    with pytest.raises(ValueError, match="No single description is held out"):
        language.sample(np.random.default_rng(0), held_out=True, kind="single")
    with pytest.raises(ValueError, match="kind of description 'many'"):
        language.descriptions("many")
