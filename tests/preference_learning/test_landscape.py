"""What votes taught, as numbers for a picture: the mixtures of the pad, and what is good and unsure among them."""

from __future__ import annotations

import numpy as np
import pytest
from diffusion_blend.preference_learning.landscape import landscape, pad_mixtures
from diffusion_blend.preference_learning.search import Search
from diffusion_blend.preference_learning.votes import FIRST, Option, Vote


def corners(adapters):
    turns = 2 * np.pi * np.arange(adapters) / adapters
    return np.column_stack([np.cos(turns), np.sin(turns)])


@pytest.mark.parametrize("adapters", range(2, 9))
def test_the_pads_mixtures_are_even_steps_over_its_shape(adapters):
    mixtures = pad_mixtures(adapters)
    assert mixtures.min() >= 0 and mixtures.sum(axis=1) == pytest.approx(1)
    places = mixtures @ corners(adapters)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(len(places))
    nearest = distances.min(axis=1)
    assert nearest == pytest.approx(np.full(len(places), nearest[0]))
    assert nearest[0] < 0.2


@pytest.mark.parametrize("adapters", [4, 6, 8])
def test_a_polygons_centre_is_equal_weights_and_an_edge_has_two_adapters(adapters):
    """Laws of Wachspress' coordinates in a regular polygon."""
    mixtures = pad_mixtures(adapters)
    places = mixtures @ corners(adapters)
    radius = np.linalg.norm(places, axis=1)
    assert mixtures[np.argmin(radius)] == pytest.approx(np.full(adapters, 1 / adapters))
    assert radius.max() == pytest.approx(1), "the first corner is there"
    outer = mixtures[np.argmax(radius)]
    assert sorted(outer) == pytest.approx([*[0] * (adapters - 1), 1], abs=1e-9)


@pytest.mark.parametrize("adapters", [2, 3, 6])
def test_the_shading_follows_the_votes(adapters):
    """The first adapter won against every other: it is the best of all corners, and the rest of the shape is less sure."""
    search = Search(adapters)
    alone = [Option(tuple(float(i == j) for j in range(adapters))) for i in range(adapters)]
    votes = [Vote(alone[0], other, FIRST) for other in alone[1:]] * 2
    learned = landscape(search, votes, search.posterior(votes))
    rows = np.array(learned["points"])
    weights, height, sure = rows[:, :adapters], rows[:, adapters], rows[:, adapters + 1]
    at = [int(np.argmax(weights[:, i])) for i in range(adapters)]
    assert height[at[0]] == max(height[at])
    assert height.min() == 0 and height.max() == 1
    assert sure.min() >= 0 and sure.max() <= 1
    assert landscape(search, [], search.posterior([]))["points"] == []
