"""Alignment: how well a picture shows its prompt, graded from 0 to 1, and whether it does so exactly."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .language import SHAPES, Description, Thing
from .parser import Found, hue_distance
from .renderer import CLEAR_BY, HUES, clearance
from .sizes import SIZE

# Hues this far apart (degrees) count as nothing alike: about the distance of neighbouring colours.
HUE_REACH = 60.0
# A shape that fits this much better than every other counts in full.
FIT_MARGIN = 0.1
POSITION_SHARE = 0.3


@dataclass(frozen=True)
class Grade:
    """``score`` in 0..1; ``exact`` when colours, shapes, number and positions are all as in the prompt; ``things`` the same
    without the positions."""

    score: float
    exact: bool
    things: bool


def grade(found: list[Found], description: Description) -> Grade:
    """Grade a parsed picture against a description.

    ``score = (1 - p + p * position) * sum_matched(colour * (1 + shape) / 2) / max(asked, found)``, with the best
    one-to-one matching of things; p is POSITION_SHARE where the prompt names a position and 0 elsewhere. So missing,
    extra, wrongly coloured, misshapen and misplaced things all cost, each by degrees.
    """
    asked = description.things
    if not found:
        return Grade(0.0, False, False)
    likeness = np.asarray([[_likeness(thing, seen) for seen in found] for thing in asked])
    grades = [_matched(found, description, likeness, pairs) for pairs in _matchings(likeness, description)]
    return max(grades, key=lambda result: (result.exact, result.score))


def _matchings(likeness: np.ndarray, description: Description) -> list[list[tuple[int, int]]]:
    """Pairs (asked, found) worth grading: the likest matching, or all where a position has a say too."""
    asked, found = likeness.shape
    if description.relation is None and description.place is None:
        rows, columns = linear_sum_assignment(-likeness)
        return [list(zip(rows.tolist(), columns.tolist(), strict=True))]
    if asked <= found:
        return [list(enumerate(columns)) for columns in itertools.permutations(range(found), asked)]
    return [[(row, column) for column, row in enumerate(rows)] for rows in itertools.permutations(range(asked), found)]


def _matched(found: list[Found], description: Description, likeness: np.ndarray, pairs: list[tuple[int, int]]) -> Grade:
    asked = description.things
    score = float(sum(likeness[pair] for pair in pairs)) / max(len(asked), len(found))
    right = len(asked) == len(found) and all(
        (found[column].colour, found[column].shape) == (asked[row].colour, asked[row].shape) for row, column in pairs
    )
    if description.relation is None and description.place is None:
        return Grade(score, right, right)
    clear = _clear(description, {row: found[column] for row, column in pairs})
    position = float(np.clip(0.5 + clear / (2 * CLEAR_BY), 0.0, 1.0))
    return Grade(score * (1 - POSITION_SHARE + POSITION_SHARE * position), right and clear > 0, right)


def _likeness(thing: Thing, seen: Found) -> float:
    colour = max(0.0, 1.0 - float(hue_distance(HUES[thing.colour], seen.hue)) / HUE_REACH)
    wanted = SHAPES.index(thing.shape)
    others = max(fit for index, fit in enumerate(seen.fits) if index != wanted)
    shape = float(np.clip(0.5 + (seen.fits[wanted] - others) / (2 * FIT_MARGIN), 0.0, 1.0))
    return colour * (1 + shape) / 2


def _clear(description: Description, matched: dict[int, Found]) -> float:
    """The distance, in pixels, by which the position agrees with the prompt. A missing thing counts as on the wrong side."""
    first, second = matched.get(0), matched.get(1)
    if first is None or (description.relation and second is None):
        return -CLEAR_BY
    if description.relation and second:
        return clearance(description.relation, (first.x, first.y), (second.x, second.y))
    return clearance(str(description.place), (first.x, first.y), (SIZE / 2, SIZE / 2))
