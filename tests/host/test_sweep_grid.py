"""The sheet and the Pareto figure, measured in pixels: every image is whole and at the place of its weights or scores."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from diffusion_blend.blending.changing_preference import PreferenceSchedule
from diffusion_blend.blending.preference import Preference
from diffusion_blend.nodes.adapters.files import RewardLoRA, RewardLoRAs
from diffusion_blend.nodes.engine.score_table import Scores
from diffusion_blend.nodes.engine.sweep_points import kl_row, labels, line, simplex
from diffusion_blend.nodes.figures.drawing import ACCENT, PAPER
from diffusion_blend.nodes.figures.pareto import FADED, LARGEST, limits
from diffusion_blend.nodes.figures.sheet_layout import arrange, on_a_line, triangle
from diffusion_blend.nodes.grid import PreferenceGrid, point_labels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageColor

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # no time limit, because a busy machine is no failure

NAMES = ["aesthetic", "faithful", "vivid", "calm", "dark"]


def adapters(count):
    return RewardLoRAs(tuple(RewardLoRA(name, name, {}, None, 1.0) for name in NAMES[:count]))


def colours(count):
    """Return distinct 8-bit colours, far from those of the drawing."""
    chosen = list(itertools.product((0, 60, 120, 180), (10, 90, 170), (20, 100, 240)))
    return np.array(chosen[:count], dtype=np.uint8)


def solid(rgb, height=32, width=32, batch=1):
    return torch.tensor(rgb, dtype=torch.float32).div(255).expand(batch, height, width, 3).clone()


def grid(images, preferences, size=64, across="", up="", names=None, scores=None, loras=None):
    outputs = PreferenceGrid.execute(
        images, preferences, [size], [across], [up], names, scores, None if loras is None else [loras]
    ).args
    return [(output[0] * 255).round().numpy().astype(np.uint8) for output in outputs]


def box(picture, rgb):
    """Return (left, top, right, bottom) of a colour's pixels, and their number."""
    rows, columns = np.nonzero((picture == np.array(rgb, dtype=np.uint8)).all(-1))
    assert len(rows), f"no pixel of {rgb}"
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), len(rows)


def residual(inputs, outputs):
    """Return the largest distance from the best affine map."""
    matrix = np.column_stack([inputs, np.ones(len(inputs))])
    solution = np.linalg.lstsq(matrix, outputs, rcond=None)[0]
    return np.abs(matrix @ solution - outputs).max()


@patient
@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_a_triangle_is_the_affine_image_of_the_simplex(divisions, random):
    preferences = simplex(3, divisions, 1.0)
    random.shuffle(preferences)
    layout = arrange(preferences, 3)
    assert layout.kind == "triangle"
    weights = np.array([p.weights for p in preferences])
    assert residual(weights, np.array(layout.places)) < 1e-9
    by_weights = dict(zip((p.weights for p in preferences), layout.places, strict=True))
    assert by_weights[1.0, 0.0, 0.0] == (divisions / 2, 0)
    assert by_weights[0.0, 1.0, 0.0] == (0, divisions)
    assert by_weights[0.0, 0.0, 1.0] == (divisions, divisions)
    assert (layout.columns, layout.rows) == (divisions + 1, divisions + 1)
    for (a, b), (c, d) in itertools.combinations(layout.places, 2):
        assert abs(a - c) >= 1 or abs(b - d) >= 1, "two images would overlap"


def test_no_triangle_without_the_whole_lattice():
    whole = [p.weights for p in simplex(3, 3, 1.0)]
    assert triangle(whole) is not None
    assert triangle(whole[:-1]) is None
    assert triangle([*whole[:-1], whole[0]]) is None
    assert triangle([*whole[:-1], (0.1, 0.1, 0.8)]) is None


def test_layouts():
    two, three, four = simplex(2, 4, 1.0), simplex(3, 4, 1.0), simplex(4, 2, 1.0)
    assert arrange(two, 2).kind == "row"
    assert arrange(line(Preference((1.0, 0.0, 0.0)), Preference((0.0, 0.5, 0.5)), 5, 3), 3).kind == "row"
    assert arrange(kl_row(Preference((1.0, 1.0)), 0.0, 2.0, 5), 2).kind == "row"
    assert arrange(kl_row(Preference((1.0, 1.0)), 0.0, 2.0, 20), 2).kind == "grid"
    assert arrange(four, 4).kind == "grid"
    assert arrange(three[:-1], 3).kind == "grid"
    assert arrange([*three[:-1], Preference(three[-1].weights, 0.5)], 3).kind == "grid"
    assert arrange([object(), *two], 2).kind == "row"
    layout = arrange(four, 4)
    assert len(set(layout.places)) == 10
    assert max(x for x, _ in layout.places) < layout.columns and max(y for _, y in layout.places) == layout.rows - 1


@patient
@given(
    st.lists(st.lists(st.floats(0.1, 1), min_size=3, max_size=3), min_size=2, max_size=2),
    st.lists(st.floats(0, 1), min_size=3, max_size=6),
    st.booleans(),
)
def test_on_a_line_is_rank_one(ends, shares_along, bent):
    a, b = (np.array(end) / np.sum(end) for end in ends)
    points = np.array([(1 - t) * a + t * b for t in shares_along])
    if bent:
        points[0] = np.roll(points[0], 1) * 0.9 + 0.1 / 3
    preferences = [Preference(tuple(map(float, point))) for point in points]
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if singular[1] < 1e-7:
        assert on_a_line(preferences)
    if singular[1] > 1e-4:
        assert not on_a_line(preferences)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_triangle_sheet_shows_every_image_whole_in_its_place(size):
    preferences = simplex(3, 4, 1.0)
    chosen = colours(15)
    sheet, _ = grid([solid(rgb) for rgb in chosen], preferences, size, loras=adapters(3))
    boxes = []
    for rgb in chosen:
        (left, top, right, bottom), count = box(sheet, rgb)
        assert (right - left, bottom - top, count) == (size, size, size * size)
        boxes.append((left, top))
    assert residual(np.array([p.weights for p in preferences]), np.array(boxes)) <= 1  # rounded to pixels
    centre = (boxes[0][0] + size / 2, boxes[0][1])
    assert centre[0] == pytest.approx(sheet.shape[1] / 2, abs=1)
    assert boxes[10][0] < centre[0] < boxes[14][0], "second adapter on the left, third on the right"


def test_a_row_keeps_the_order_and_other_proportions():
    chosen = colours(5)
    sheet, _ = grid([solid(rgb, 30, 60) for rgb in chosen], kl_row(Preference((1.0, 1.0)), 0.0, 2.0, 5), 120)
    boxes = [box(sheet, rgb)[0] for rgb in chosen]
    assert [(right - left, bottom - top) for left, top, right, bottom in boxes] == [(120, 60)] * 5
    assert len({top for _, top, _, _ in boxes}) == 1
    assert [left for left, *_ in boxes] == sorted(left for left, *_ in boxes)


def test_images_of_different_sizes_are_shown_whole():
    chosen = colours(3)
    images = [solid(chosen[0], 20, 60), solid(chosen[1], 60, 20), torch.rand(1, 40, 40, 4) * 0 + 1]
    images[2][..., :3] = solid(chosen[2], 40, 40)
    sheet, _ = grid(images, simplex(2, 2, 1.0), 90)
    found = [box(sheet, rgb)[0] for rgb in chosen]
    assert [(right - left, bottom - top) for left, top, right, bottom in found] == [(90, 30), (30, 90), (90, 90)]


def test_a_label_is_written_below_its_own_image_and_nowhere_else():
    preferences, chosen = simplex(3, 4, 1.0), colours(15)
    images = [solid(rgb) for rgb in chosen]
    names = labels(preferences, 3)
    before, _ = grid(images, preferences, names=names)
    for changed in (0, 7, 14):
        other = [*names[:changed], "XYZ", *names[changed + 1 :]]
        after, _ = grid(images, preferences, names=other)
        rows, columns = np.nonzero((before != after).any(-1))
        (left, _, right, bottom), _ = box(before, chosen[changed])
        gap = 8
        assert left - gap <= columns.min() and columns.max() < right + gap
        assert bottom <= rows.min() and rows.max() < bottom + 40


def test_the_bar_shows_the_shares():
    (preference,) = [p for p in simplex(3, 4, 1.0) if p.weights == (0.5, 0.25, 0.25)]
    rgb = colours(1)[0]
    sheet, _ = grid([solid(rgb)], [preference], 128, loras=adapters(3))
    (left, _, right, bottom), _ = box(sheet, rgb)
    bar = sheet[bottom + 3, left:right]
    colour = [tuple(map(int, pixel)) for pixel in bar]
    runs = [(key, len(list(group))) for key, group in itertools.groupby(colour)]
    assert [length for _, length in runs] == [64, 32, 32]
    assert [key for key, _ in runs] == [ImageColor.getrgb(name) for name in ("#56b4e9", "#e69f00", "#009e73")]


def pareto_case():
    """Make eight images far apart, three of which are dominated."""
    across = [0.0, 1.0, 2.0, 3.0, 4.0, 0.2, 1.2, 2.2]
    up = [-10.0, -12.0, -15.0, -21.0, -30.0, -29.0, -24.0, -28.0]
    preferences = [Preference((w, 1 - w)) for w in np.linspace(0, 1, 8)]
    scores = [Scores(("quality", "other", "size"), ((a,), (0.0,), (b,))) for a, b in zip(across, up, strict=True)]
    return across, up, preferences, scores


def test_the_pareto_figure_puts_images_at_their_scores():
    across, up, preferences, scores = pareto_case()
    chosen = colours(8)
    _, figure = grid([solid(rgb) for rgb in chosen], preferences, up="size", scores=scores)
    beats = [
        [a >= c and b >= d and (a, b) != (c, d) for a, b in zip(across, up, strict=True)]
        for c, d in zip(across, up, strict=True)
    ]
    centres = []
    for rgb, beaten in zip(chosen, map(any, beats), strict=True):
        paper = np.array(ImageColor.getrgb(PAPER))
        shown = np.floor(rgb * (1 - FADED) + paper * FADED).astype(np.uint8) if beaten else rgb
        near = (np.abs(figure.astype(int) - shown.astype(int)) <= 1).all(-1)
        rows, columns = np.nonzero(near)
        assert len(rows) > 1500
        left, right, bottom = columns.min(), columns.max() + 1, rows.max() + 1
        centres.append(((left + right) / 2, bottom))
        frame = figure[bottom - 10, left - 2]
        assert (tuple(map(int, frame)) == ImageColor.getrgb(ACCENT)) == (not beaten), "the front and only it is orange"
    x, y = np.array(centres).T
    assert residual(np.array(across)[:, None], x[:, None]) <= 1
    assert residual(np.array(up)[:, None], y[:, None]) <= 2
    assert np.polyfit(across, x, 1)[0] > 0 and np.polyfit(up, y, 1)[0] < 0, "better is right and up"


def test_the_rewards_of_the_figure_can_be_chosen():
    _, _, preferences, scores = pareto_case()
    images = [solid(rgb) for rgb in colours(8)]
    _, first = grid(images, preferences, scores=scores)
    _, named = grid(images, preferences, across="quality", up="other", scores=scores)
    _, chosen = grid(images, preferences, across="size", up="quality", scores=scores)
    assert np.array_equal(first, named)
    assert not np.array_equal(first, chosen)
    with pytest.raises(ValueError, match="no scores named 'beauty', only quality, other, size"):
        grid(images, preferences, up="beauty", scores=scores)


def test_a_batch_shows_its_first_image_and_counts_with_its_mean():
    preferences, chosen = simplex(2, 1, 1.0), colours(4)
    pairs = [torch.cat([solid(chosen[i]), solid(chosen[i + 1])]) for i in (0, 2)]
    means = [Scores(("a", "b"), ((1.0,), (2.0,))), Scores(("a", "b"), ((3.0,), (1.0,)))]
    both = [Scores(("a", "b"), ((0.0, 2.0), (2.0, 2.0))), Scores(("a", "b"), ((5.0, 1.0), (0.0, 2.0)))]
    drawn = grid(pairs, preferences, scores=both)
    expected = grid([solid(chosen[0]), solid(chosen[2])], preferences, scores=means)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_without_two_rewards_the_figure_says_what_to_connect():
    preferences, images = simplex(2, 2, 1.0), [solid(rgb) for rgb in colours(3)]
    one = [Scores(("a",), ((float(i),),)) for i in range(3)]
    _, none = grid(images, preferences)
    _, single = grid(images, preferences, scores=one)
    full = grid(images, preferences, scores=[Scores(("a", "b"), ((1.0,), (2.0,)))] * 3)[1]
    assert none.shape != full.shape and single.shape != full.shape
    assert not np.array_equal(none, single)


def test_preferences_without_weights_get_a_row_with_labels():
    images = [solid(rgb) for rgb in colours(3)]
    schedules = [PreferenceSchedule(Preference((1.0, 0.0)), Preference((0.0, 1.0)))] * 3
    sheet, _ = grid(images, schedules, names=["early", "middle", "late"])
    counted, _ = grid(images, schedules)
    lefts = [box(sheet, rgb)[0][0] for rgb in colours(3)]
    assert lefts == sorted(lefts) and len({box(sheet, rgb)[0][1] for rgb in colours(3)}) == 1
    assert not np.array_equal(sheet, counted)


@patient
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9), st.floats(600, 1200))
def test_the_largest_images_lie_whole_inside_the_frame(values, pixels):
    low, high = limits(values, pixels)
    assert low < high
    for value in values:
        place = (value - low) / (high - low) * pixels
        assert LARGEST / 2 < place < pixels - LARGEST / 2


def test_equal_scores_have_a_figure_too():
    images = [solid(rgb) for rgb in colours(2)]
    _, figure = grid(images, simplex(2, 1, 1.0), scores=[Scores(("a", "b"), ((1.0,), (2.0,)))] * 2)
    assert len(np.unique(figure.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    ("count", "more", "message"),
    [
        (2, {}, "2 batches of images for 3 preferences"),
        (3, {"names": ["a"]}, "1 labels for 3 preferences"),
        (3, {"scores": [Scores(("a", "b"), ((1.0,), (2.0,)))]}, "3 batches of images, but scores of 1"),
        (
            3,
            {"scores": [Scores(("a", "b"), ((1.0, 1.0), (2.0, 2.0)))] * 3},
            "Batch 1 has 1 images, but there are scores of 2",
        ),
    ],
)
def test_what_does_not_fit_is_said(count, more, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grid([solid(rgb) for rgb in colours(count)], simplex(2, 2, 1.0), **more)


def test_points_that_are_not_plain_are_named_by_their_kl_scale_or_counted():
    ends = Preference((1.0, 0.0)), Preference((0.0, 1.0))
    schedule = PreferenceSchedule(*ends)
    assert point_labels(kl_row(schedule, 0.0, 1.5, 3), 2) == ["kl 0", "kl .75", "kl 1.50"]
    assert point_labels([schedule, PreferenceSchedule(*reversed(ends))], 2) == ["1", "2"]
    mixed = PreferenceSchedule(ends[0], Preference((0.0, 1.0), 2.0))
    assert point_labels([schedule, mixed], 2) == ["1", "2"]
