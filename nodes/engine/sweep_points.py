"""The preferences of a sweep and their labels: a line, a simplex, a row of KL scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...blending.preference import AnyPreference, Preference
from ...blending.simplex import lattice, lattice_size

MOST_POINTS = 1000
"""The largest number of points. Each point runs all nodes that follow, so a larger number is most likely a typing error."""


def shares(preference: Preference, count: int) -> tuple[float, ...]:
    """The first weights of a preference, divided by their sum.

    Args:
        preference: any; missing weights count as 0.
        count: how many adapters.

    Returns:
        float[count], sum 1.

    Raises:
        ValueError: no weight is above 0.
    """
    weights = (*preference.weights, *[0.0] * count)[:count]
    total = math.fsum(weights)
    if total == 0:
        raise ValueError(
            "All weights of a preference are 0: raise at least one. For the base model, set kl_scale to 0."
        )
    return tuple(weight / total for weight in weights)


def used_adapters(preferences: Sequence[Preference]) -> int:
    """How many adapters the weights speak of: up to the last one that has any."""
    return max(
        (number for preference in preferences for number, weight in enumerate(preference.weights, 1) if weight > 0),
        default=0,
    )


def line(start: Preference, end: Preference, points: int, count: int) -> list[Preference]:
    """Evenly spaced preferences from one to another, both included.

    ``w(t) = (1 - t) w_start + t w_end`` over weights of sum 1, and the KL scale likewise, t = 0, 1/(n-1), ..., 1.

    Args:
        start: where t is 0.
        end: where t is 1.
        points: n, at least 2.
        count: how many adapters.

    Returns:
        Preferences of one weight per adapter; if both ends have the weights of the same nodes, all of these weights.

    Raises:
        ValueError: fewer than 2 points, or a preference without any weight.
    """
    _at_least_two(points, "line")
    nodes = start.nodes if start.nodes == end.nodes else ()
    count = sum(nodes) or count
    first, last = shares(start, count), shares(end, count)
    return [
        Preference(
            tuple((1 - t) * a + t * b for a, b in zip(first, last, strict=True)),
            _between(start.kl_scale, end.kl_scale, t),
            nodes,
        )
        for t in _fractions(points)
    ]


def simplex(count: int, divisions: int, kl_scale: float) -> list[Preference]:
    """Every preference whose weights are multiples of 1/d: the lattice of the simplex, ``C(d + m - 1, m - 1)`` points.

    The first adapter's corner comes first; three adapters make the rows of a triangle, top to bottom.

    Args:
        count: m, how many adapters, at least 2.
        divisions: d, steps along an edge, at least 1.
        kl_scale: of every point.

    Raises:
        ValueError: fewer than 2 adapters or 1 division, or more than `MOST_POINTS` points.
    """
    if count < 2:
        raise ValueError(f"A simplex sweep needs at least 2 adapters and got {count}: load another LoRA.")
    if divisions < 1:
        raise ValueError(f"divisions is {divisions}: it must be at least 1.")
    points = lattice_size(count, divisions)
    if points > MOST_POINTS:
        raise ValueError(
            f"{divisions} divisions over {count} adapters are {points} points, each a whole run; at most {MOST_POINTS} "
            "are allowed: choose fewer divisions."
        )
    return [Preference(point, kl_scale) for point in lattice(count, divisions)]


def kl_row(preference: AnyPreference, first: float, last: float, points: int) -> list[AnyPreference]:
    """The same weights at evenly spaced KL scales, both ends included.

    Args:
        preference: of every point; its own KL scale does not count.
        first: the first KL scale.
        last: the last one.
        points: at least 2.

    Raises:
        ValueError: fewer than 2 points.
    """
    return [preference.at_kl_scale(scale) for scale in kl_scales(first, last, points)]


def kl_scales(first: float, last: float, points: int) -> list[float]:
    """Evenly spaced, both ends included; errors as `kl_row`."""
    _at_least_two(points, "row of KL scales")
    return [_between(first, last, t) for t in _fractions(points)]


def labels(preferences: Sequence[Preference], count: int) -> list[str]:
    """Short names: the weights where they differ or there are several adapters, the KL scale where it says something.

    Args:
        preferences: the points of a sweep.
        count: how many adapters.

    Returns:
        One a point: "w .50 .25 .25", "w 1 0 kl .50", or "kl .50" where only the KL scales differ.
    """
    weights = [" ".join(["w", *map(number, shares(preference, count))]) for preference in preferences]
    scales = [f"kl {number(preference.kl_scale)}" for preference in preferences]
    if set(scales) <= {"kl 1"}:
        return weights
    if len(set(weights)) == 1 and len(set(scales)) > 1:
        return scales
    return [f"{weight} {scale}" for weight, scale in zip(weights, scales, strict=True)]


def number(value: float) -> str:
    """At least two places, three where they count, no leading zero; whole numbers plain: ".50", "1.25", ".125", "1"."""
    rounded = round(value, 3)
    if rounded == int(rounded):
        return str(int(rounded))
    text = f"{abs(rounded):.3f}".removesuffix("0").removeprefix("0")
    return f"-{text}" if rounded < 0 else text


def _fractions(points: int) -> list[float]:
    return [i / (points - 1) for i in range(points)]


def _between(first: float, last: float, t: float) -> float:
    """Rounded, so that a KL scale of 1 is exactly 1 and needs no call of the base model."""
    return round((1 - t) * first + t * last, 9)


def _at_least_two(points: int, what: str) -> None:
    if not 2 <= points <= MOST_POINTS:
        raise ValueError(f"points is {points}: a {what} has 2 to {MOST_POINTS} of them, its two ends included.")
