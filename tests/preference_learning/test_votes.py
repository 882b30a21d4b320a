"""The text of votes: it comes back as it was, short votes replay the search, and mistakes are named."""

from __future__ import annotations

import pytest
from diffusion_blend.preference_learning.search import Search
from diffusion_blend.preference_learning.votes import (
    BAD,
    EQUAL,
    FIRST,
    SECOND,
    Narrowing,
    Option,
    Vote,
    read,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def never(entries):
    raise AssertionError("votes with their options need no search")


@st.composite
def hundredths(draw, adapters):
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=adapters - 1, max_size=adapters - 1)))
    return tuple((b - a) / 100 for a, b in zip([0, *cuts], [*cuts, 100], strict=True))


@st.composite
def options(draw, adapters=3):
    return Option(draw(hundredths(adapters)), draw(st.integers(-500, 500)) / 100)


votes = st.builds(Vote, options(), options(), st.sampled_from([FIRST, SECOND, EQUAL, BAD]))
narrowings = st.builds(Narrowing, options(), st.integers(1, 100).map(lambda part: part / 100))


@settings(deadline=None)
@given(st.lists(votes | narrowings, max_size=12))
def test_written_votes_are_read_as_they_were(entries):
    back = read(write(entries), 3, never)
    assert [entry.text() for entry in back] == [entry.text() for entry in entries]
    assert write(back) == write(entries)


def test_short_votes_are_about_the_pairs_that_the_search_proposes():
    search = Search(3)
    entries = read("1 2\n0 x  # a comment", 3, search.next_pair)
    assert [vote.outcome for vote in entries] == [FIRST, SECOND, EQUAL, BAD]
    for count, vote in enumerate(entries):
        assert (vote.first, vote.second) == search.next_pair(entries[:count])
    assert read(write(entries), 3, never) == entries


def test_weights_are_divided_by_their_sum_and_the_kl_scale_is_1_where_it_is_left_out():
    assert read("2 2 0 > 0 0 3 kl 1.2", 3, never) == [Vote(Option((0.5, 0.5, 0)), Option((0, 0, 1), 1.2), FIRST)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 > 0 1", "option of 2 weights for 3 adapters"),
        ("1 0 0 kl nan > 0 1 0", "finite"),
        ("1 0 0 > 0 1 zero", "'zero' where a number is expected"),
        ("1 0 0 kl 1", "write 1, 2, 0"),
        ("-1 1 1 > 0 1 0", "at least 0"),
        ("around 1 0 0 within 2", "at most 1"),
        ("around 1 0 0", "within"),
        ("1\n\n0 0 0 > 1 0 0", "Line 3"),
        ("1 " * 1001, "more than 1000"),
    ],
)
def test_a_mistake_is_named_with_its_line(text, message):
    pair = (Option((1, 0, 0)), Option((0, 1, 0)))
    with pytest.raises(ValueError, match=message):
        read(text, 3, lambda entries: pair)
