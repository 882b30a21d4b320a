"""Keep Best against scipy and numpy, laws of its table, and the message of every refusal."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.stats
import torch
from diffusion_blend.nodes.engine.score_table import Scores, joined, pareto_front, utilities
from diffusion_blend.nodes.keep_best import KeepBest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # no time limit, because a busy machine is no failure

values = st.floats(-100, 100).map(lambda value: round(value, 3))
tables = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(values, min_size=n, max_size=n), min_size=2, max_size=4)
)
weights = st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda w: sum(w[:2]) > 0.01)


def table(columns):
    return Scores(tuple("abcd"[: len(columns)]), tuple(map(tuple, columns)))


def keep(images, scores, *wanted, scale="z-scores", count=1, among="all together", labels=None):
    weighing = [[weight] for weight in (*wanted, *[0.0] * (4 - len(wanted)))]
    return KeepBest.execute(images, scores, *weighing, [scale], [count], [among], labels).args


def numbered(*sizes, side=4):
    """Make batches in which the pixels of an image are its number."""
    numbers = iter(range(sum(sizes)))
    return [torch.stack([torch.full((side, side, 3), float(next(numbers))) for _ in range(size)]) for size in sizes]


@patient
@given(tables, weights)
def test_utilities_are_weighted_z_scores(columns, wanted):
    wanted = wanted[: len(columns)]
    matrix = np.array(columns)
    constant = matrix.std(axis=1) < 1e-9
    z = np.zeros_like(matrix)
    z[~constant] = scipy.stats.zscore(matrix[~constant], axis=1)
    share = np.zeros(len(columns))
    share[: len(wanted)] = wanted
    share /= share.sum()
    assert utilities(table(columns), wanted, True) == pytest.approx(share @ z, abs=1e-6)
    assert utilities(table(columns), wanted, False) == pytest.approx(share @ matrix, abs=1e-9)


@patient
@given(tables, st.integers(1, 12), st.floats(0.5, 20), st.floats(-50, 50))
def test_the_best_are_numpys_and_no_unit_matters(columns, count, factor, shift):
    matrix = np.array(columns)
    n = matrix.shape[1]
    count = min(count, n)
    images = numbered(n)
    (best,), (scores,), indices, _ = keep(images, [table(columns)], 0.3, 0.7, scale="raw", count=count)
    order = np.argsort(-(0.3 * matrix[0] + 0.7 * matrix[1]), kind="stable")[:count]
    chosen = [int(i) for i in indices.split(", ")]
    utility = 0.3 * matrix[0] + 0.7 * matrix[1]
    assert utility[chosen] == pytest.approx(utility[order], abs=1e-9)
    assert best[:, 0, 0, 0].tolist() == chosen
    assert scores.columns == tuple(tuple(column[i] for i in chosen) for column in columns)
    rescaled = table([matrix[0] * factor + shift, *matrix[1:]])
    before, after = (utilities(each, [0.3, 0.7], True) for each in (table(columns), rescaled))
    if matrix[0].std() > 1e-3:
        assert after == pytest.approx(before, abs=1e-6)


def test_equal_images_keep_their_order():
    assert keep(numbered(4), [table([[1.0, 1.0, 1.0, 1.0], [0.0] * 4])], 1.0, count=4)[2] == "0, 1, 2, 3"


def test_the_best_of_every_batch_and_of_all():
    scores = [table([[1.0, 5.0], [0.0, 0.0]]), table([[9.0, 7.0, 8.0], [0.0, 0.0, 0.0]])]
    images = numbered(2, 3)
    best, best_tables, indices, report = keep(images, scores, 1.0, among="each batch", labels=["w 1 0", "w 0 1"])
    assert [batch[:, 0, 0, 0].tolist() for batch in best] == [[1.0], [2.0]]
    assert [each.columns[0] for each in best_tables] == [(5.0,), (9.0,)]
    assert indices == "1, 2"
    assert report.splitlines()[1].startswith("image 2 (w 0 1): ")
    best, _, indices, _ = keep(images, scores, 1.0, count=2)
    assert indices == "2, 4"
    assert [batch.shape[0] for batch in best] == [2]


def test_images_of_different_sizes_come_one_by_one():
    images = [numbered(1, side=4)[0], numbered(1, side=6)[0]]
    best, scores, indices, _ = keep(images, [table([[1.0], [0.0]]), table([[2.0], [0.0]])], 1.0, count=2)
    assert [tuple(image.shape) for image in best] == [(1, 6, 6, 3), (1, 4, 4, 3)]
    assert [each.columns[0] for each in scores] == [(2.0,), (1.0,)]
    assert indices == "1, 0"


@patient
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_by_brute_force(points):
    def beats(a, b):
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    across, up = zip(*points, strict=True)
    expected = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
    front = pareto_front(across, up)
    assert set(front) == expected and len(front) == len(expected)
    assert [across[i] for i in front] == sorted(across[i] for i in front)


def test_joined_tables_are_one():
    whole = table([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert joined([whole.rows([0]), whole.rows([1, 2])]) == whole
    assert whole.means() == (2.0, 5.0)
    assert whole.column("b") == (4.0, 5.0, 6.0)


TWO = table([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: keep(numbered(2), [TWO], 0.5, 0.5, 0.5), "weight_3 is 0.5, but there are only the scores a, b"),
        (lambda: keep(numbered(2), [TWO], 0.0), "All weights are 0 for a, b"),
        (lambda: keep(numbered(2), [TWO], float("nan")), "weight_1 is nan"),
        (lambda: keep(numbered(2), [TWO], 1.0, -0.5), "weight_2 is -0.5"),
        (lambda: keep(numbered(2), [TWO], 1.0, count=3), "count is 3, but there are only 2 images: lower it"),
        (
            lambda: keep(numbered(2, 2), [TWO, TWO], 1.0, count=3, among="each batch"),
            "count is 3, but there are only 2 images in a batch",
        ),
        (lambda: keep(numbered(3), [TWO], 1.0), "Batch 1 has 3 images, but there are scores of 2"),
        (lambda: keep(numbered(2, 2), [TWO], 1.0), "2 batches of images, but scores of 1"),
        (lambda: keep(numbered(2), [TWO], 1.0, labels=["a", "b"]), "2 labels for 1 batches"),
        (
            lambda: keep(numbered(2, 2), [TWO, Scores(("b", "a"), TWO.columns)], 1.0),
            "Some images are scored by a, b, others by b, a",
        ),
        (lambda: TWO.column("c"), "There are no scores named 'c', only a, b"),
    ],
)
def test_what_does_not_fit_is_said(act, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        act()
