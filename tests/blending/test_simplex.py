"""The simplex of preference weights against enumeration, torch's linear solver and plane geometry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusion_blend.blending.simplex import (
    TRIANGLE_CORNERS,
    TRIANGLE_HEIGHT,
    lattice,
    lattice_size,
    triangle_divisions,
    triangle_point,
)
from hypothesis import given
from hypothesis import strategies as st

SMALL = [(adapters, divisions) for adapters in (1, 2, 3, 4, 5) for divisions in (1, 2, 3, 4, 7)]

weights_of_three = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda parts: [part / math.fsum(parts) for part in parts]
)


@pytest.mark.parametrize(("adapters", "divisions"), SMALL)
def test_the_lattice_is_every_vector_of_whole_parts_with_the_right_sum(adapters: int, divisions: int) -> None:
    every = itertools.product(range(divisions + 1), repeat=adapters)
    expected = sorted((parts for parts in every if sum(parts) == divisions), reverse=True)
    assert lattice(adapters, divisions) == [tuple(part / divisions for part in parts) for parts in expected]
    assert lattice_size(adapters, divisions) == len(expected)


@pytest.mark.parametrize(("adapters", "divisions"), SMALL)
def test_the_lattice_does_not_change_when_the_adapters_are_permuted(adapters: int, divisions: int) -> None:
    points = set(lattice(adapters, divisions))
    for order in itertools.permutations(range(adapters)):
        assert {tuple(point[i] for i in order) for point in points} == points


@pytest.mark.parametrize("divisions", [1, 2, 3, 4, 5, 7, 10])
def test_three_adapters_give_the_rows_of_a_triangle(divisions: int) -> None:
    """From top to bottom and from left to right; row r has r + 1 points, and all neighbours are equally far apart."""
    points = [triangle_point(weights) for weights in lattice(3, divisions)]
    rows = [points[r * (r + 1) // 2 : (r + 1) * (r + 2) // 2] for r in range(divisions + 1)]
    assert sum(map(len, rows)) == len(points)
    for number, row in enumerate(rows):
        assert [y for _, y in row] == pytest.approx([TRIANGLE_HEIGHT * (1 - number / divisions)] * len(row), abs=1e-12)
        assert [b - a for (a, _), (b, _) in itertools.pairwise(row)] == pytest.approx([1 / divisions] * number)
    for upper, lower in itertools.pairwise(rows):
        for i, point in enumerate(upper):
            assert [math.dist(point, lower[i]), math.dist(point, lower[i + 1])] == pytest.approx([1 / divisions] * 2)


@pytest.mark.parametrize(("adapters", "divisions"), [(0, 3), (3, 0), (-1, 2), (2, -1)])
def test_an_empty_lattice_is_refused(adapters: int, divisions: int) -> None:
    with pytest.raises(ValueError, match=f"over {adapters} adapters in {divisions} divisions: both must be at least 1"):
        lattice(adapters, divisions)


def test_triangle_divisions_inverts_the_size_of_the_lattice() -> None:
    sizes = {lattice_size(3, divisions): divisions for divisions in range(1, 60)}
    for points in range(max(sizes) + 1):
        assert triangle_divisions(points) == sizes.get(points)


@pytest.mark.parametrize("divisions", [10**6, 10**7])
def test_triangle_divisions_is_exact_for_large_numbers(divisions: int) -> None:
    points = (divisions + 1) * (divisions + 2) // 2
    assert triangle_divisions(points) == divisions
    assert triangle_divisions(points - 1) is triangle_divisions(points + 1) is None


def test_the_corners_are_an_equilateral_triangle_of_side_1_with_the_first_on_top() -> None:
    top, left, right = TRIANGLE_CORNERS
    assert [math.dist(a, b) for a, b in itertools.combinations(TRIANGLE_CORNERS, 2)] == pytest.approx([1.0] * 3)
    assert top[1] > left[1] == right[1] and left[0] < top[0] < right[0]
    assert [triangle_point(row) for row in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == [top, left, right]


@given(weights_of_three)
def test_the_weights_are_the_barycentric_coordinates_of_their_point(weights: list[float]) -> None:
    """Solving ``sum_i w_i corner_i = point``, ``sum_i w_i = 1`` gives the weights back."""
    system = torch.tensor([[*corner, 1.0] for corner in TRIANGLE_CORNERS], dtype=torch.float64).t()
    point = torch.tensor([*triangle_point(weights), 1.0], dtype=torch.float64)
    assert torch.linalg.solve(system, point).tolist() == pytest.approx(weights, abs=1e-12)


@given(weights_of_three, weights_of_three, st.floats(0, 1))
def test_a_mixture_of_preferences_lies_on_the_line_between_them(a: list[float], b: list[float], share: float) -> None:
    mixture = [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]
    between = [share * x + (1 - share) * y for x, y in zip(triangle_point(a), triangle_point(b), strict=True)]
    assert triangle_point(mixture) == pytest.approx(between, abs=1e-12)
