"""Coefficient schedules over a run and across an image, against closed forms and torch's own resizing."""

import math
from collections import Counter

import pytest
import torch
from diffusion_blend.blending.changing_preference import PreferenceSchedule, RegionalPreference
from diffusion_blend.blending.combine import combine, evaluate
from diffusion_blend.blending.draws import round_dependently
from diffusion_blend.blending.plans import Blend, Soup, Stochastic
from diffusion_blend.blending.preference import Preference
from diffusion_blend.blending.schedules import (
    CURVES,
    Interpolated,
    Regional,
    curve_value,
    feather,
    interpolate,
    mask_of_images,
)
from diffusion_blend.blending.step_info import StepInfo
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

NAMES = ["text", "beauty", "colour"]
START, END = (0.7, 0.1, 0.4), (-0.2, 0.5, 0.0)
numbers = st.floats(-5, 5)


@pytest.mark.parametrize(
    ("curve", "middle"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2), ("step", 0.0)]
)
def test_curves_by_hand(curve, middle):
    assert curve_value(curve, 0) == 0
    assert curve_value(curve, 1) == pytest.approx(1)
    assert curve_value(curve, 0.25) == pytest.approx(middle)
    assert curve_value(curve, 0.5) == pytest.approx(1.0 if curve == "step" else 0.5)


@given(st.sampled_from(CURVES), st.floats(0, 1), st.floats(0, 1))
def test_curves_never_turn_back(curve, a, b):
    assert 0 <= curve_value(curve, min(a, b)) <= curve_value(curve, max(a, b)) <= 1


def test_progress_is_0_at_the_first_step_and_1_at_the_last():
    assert [StepInfo(i, 5).progress for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert StepInfo(0, 1).progress == 0


@given(numbers, numbers, st.floats(0, 1))
def test_between_is_exact_where_it_must_be(a, b, share):
    assert interpolate(a, b, 0.0) == a
    assert interpolate(a, b, 1.0) == b
    assert interpolate(a, a, share) == a
    assert interpolate(a, b, share) == pytest.approx((1 - share) * a + share * b, abs=1e-12)
    pixels = interpolate(a, b, torch.tensor([0.0, share, 1.0], dtype=torch.float64))
    assert pixels.tolist() == [a, pytest.approx(interpolate(a, b, share), abs=1e-12), b]


def test_a_schedule_step_by_step():
    schedule = Interpolated((1.0, 0.0), (0.0, 1.0), "linear", 0.25, 0.75)
    got = [schedule(StepInfo(i, 9)) for i in range(9)]
    assert [a for a, _ in got] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    assert all(a + b == pytest.approx(1) for a, b in got)


def test_a_movement_of_no_length_is_a_jump():
    schedule = Interpolated((1.0,), (0.0,), "linear", 0.5, 0.5)
    assert [schedule(StepInfo(i, 5))[0] for i in range(5)] == [1, 1, 0, 0, 0]


def test_a_schedule_of_one_step_is_its_start():
    assert Interpolated((1.0,), (0.0,))(StepInfo(0, 1)) == (1.0,)


@given(st.lists(numbers, min_size=1, max_size=4).map(tuple), st.sampled_from(CURVES), st.integers(0, 9))
def test_a_constant_schedule_gives_the_very_plan(c, curve, index):
    assert Blend(Interpolated(c, c, curve))(StepInfo(index, 10)) == Blend(c)(StepInfo(index, 10))


@given(st.integers(0, 9), st.sampled_from(CURVES))
def test_a_schedules_plan_is_affine_at_every_step(index, curve):
    schedule = Interpolated(START, END, curve)
    plan = Blend(schedule)(StepInfo(index, 10))
    assert math.fsum(plan.mix) == pytest.approx(1)
    shares = [math.fsum(m * row[0][i] for m, row in zip(plan.mix, plan.gates, strict=True)) for i in range(3)]
    assert shares == pytest.approx(schedule(StepInfo(index, 10)), abs=1e-9)
    assert Soup(schedule)(StepInfo(index, 10)).gates == ((schedule(StepInfo(index, 10)),),)


def test_an_adapter_is_evaluated_only_while_it_counts():
    planner = Blend(Interpolated((1.0, 0.0), (0.0, 1.0)))
    assert [len(planner(StepInfo(i, 3)).mix) for i in range(3)] == [1, 2, 1]


def test_schedules_may_be_nested():
    first = PreferenceSchedule(Preference((1, 0, 0)), Preference((0, 1, 0)), end_at=0.5)
    schedule = PreferenceSchedule(first, Preference((0, 0, 1)), start_at=0.5).coefficients(NAMES)
    assert [schedule(StepInfo(i, 5)) for i in (0, 2, 4)] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def linear(row):
    """A network whose output is linear in the gates, 2 channels on 4 x 6 pixels."""
    outputs = torch.tensor([5.0, -7.0, 2.0], dtype=torch.float64)
    values = torch.tensor([[g * o for g, o in zip(gates, outputs, strict=True)] for gates in row]).sum(1) + 1
    return values.view(-1, 1, 1, 1).expand(-1, 2, 4, 6).clone()


def random_mask(count=1, height=4, width=6, seed=0):
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed))


def test_every_pixel_is_blended_by_its_own_coefficients():
    mask = random_mask()
    planner = Blend(Regional(START, END, mask))
    step = StepInfo(pixels=(4, 6))
    blended = evaluate(planner(step), linear)
    for y, x in ((0, 0), (2, 5), (3, 1)):
        m = float(mask[0, y, x])
        c = tuple((1 - m) * a + m * b for a, b in zip(START, END, strict=True))
        assert blended[0, 0, y, x].item() == pytest.approx(
            evaluate(Blend(c)(step), linear)[0, 0, y, x].item(), rel=1e-6
        )


def test_the_mix_sums_to_one_at_every_pixel():
    plan = Blend(Regional(START, Interpolated(END, START), random_mask(3)))(
        StepInfo(1, 4, images=(0, 1, 2), pixels=(2, 2))
    )
    assert torch.allclose(sum(plan.mix), torch.ones(3, 1, 2, 2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("value", "alone"), [(0.0, START), (1.0, END)])
def test_a_mask_of_zeros_or_ones_is_one_preference_alone(value, alone):
    mask = torch.full((1, 64, 48), value)
    for width in (0, 9):
        plan = Blend(Regional(START, END, feather(mask, width)))(StepInfo(pixels=(4, 6)))
        plain = Blend(alone)(StepInfo())
        assert plan.gates == plain.gates
        assert all(bool((c == expected).all()) for c, expected in zip(plan.mix, plain.mix, strict=True))


def test_regions_chain():
    """Two disjoint hard masks over a base: three preferences in three places."""
    masks = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)]
    masks[0][..., 0] = 1
    masks[1][..., 2] = 1
    one = RegionalPreference(Preference((1, 0, 0)), Preference((0, 1, 0)), masks[0])
    both = RegionalPreference(one, Preference((0, 0, 1), 2.0), masks[1])
    c = both.coefficients(NAMES)(StepInfo(pixels=(2, 3)))
    assert [part[0, 0, 0].tolist() for part in c] == [[0, 1, 0], [1, 0, 0], [0, 0, 2]]
    assert both.parts == (Preference((1, 0, 0)), Preference((0, 1, 0)), Preference((0, 0, 1), 2.0))


def test_an_image_has_the_mask_of_its_index():
    masks = random_mask(2)
    together = mask_of_images(masks, (0, 1, 2, 3), (4, 6))
    assert torch.equal(together[:2], together[2:])
    assert torch.equal(mask_of_images(masks, (3,), (4, 6)), together[3:])
    assert mask_of_images(masks[:1], (0, 1, 2), (4, 6)).shape == (1, 1, 4, 6)


def test_a_finer_mask_is_averaged_over_each_latent_pixel():
    mask = random_mask(1, 32, 48)
    blocks = mask.view(1, 4, 8, 6, 8).mean((2, 4))
    assert torch.allclose(mask_of_images(mask, (0,), (4, 6))[0].float(), blocks, atol=1e-6)
    coarse = mask_of_images(random_mask(1, 2, 3), (0,), (4, 6))
    assert coarse.shape == (1, 1, 4, 6)
    assert 0 <= coarse.min() <= coarse.max() <= 1


@pytest.mark.parametrize("width", [2, 5, 16])
def test_a_feathered_edge_rises_linearly_over_its_width(width):
    mask = torch.zeros(1, 40, 80)
    mask[..., 40:] = 1
    profile = feather(mask, width)[0, 20]
    slope = profile.diff()
    odd = 2 * (width // 2) + 1
    assert torch.allclose(slope[slope > 0], torch.full((odd,), 1 / odd), atol=1e-6)
    assert profile[:20].max() == 0
    assert profile[-20:].min() == 1
    assert torch.equal(feather(mask, 0), mask)


@pytest.mark.parametrize("shape", [(4, 2, 4, 6), (4, 2, 3, 4, 6)], ids=["image", "video"])
@pytest.mark.parametrize("masks", [1, 2])
def test_combine_with_pixels_is_the_sum_by_hand(shape, masks):
    """Two chunks of two images. The images of a chunk are adjacent."""
    generator = torch.Generator().manual_seed(1)
    predictions = [torch.randn(shape, generator=generator) for _ in range(2)]
    share = torch.rand(masks, 1, 4, 6, generator=generator, dtype=torch.float64)
    total = combine([p.clone() for p in predictions], (share, 1 - share))
    assert total.dtype == torch.float32
    for n in range(4):
        m = share[n % masks, 0].float()  # [H, W], broadcast over channels and frames
        assert torch.allclose(total[n], m * predictions[0][n] + (1 - m) * predictions[1][n], atol=1e-6)


TABLE = tuple(tuple(w / sum(row) for w in row) for row in [(1, 8, 1), (5, 0, 5), (2, 2, 2), (9, 1, 0), (1, 1, 7)])


def test_dependent_rounding_keeps_every_steps_probabilities():
    drawn = [round_dependently(TABLE, 3, image) for image in range(4000)]
    for step, row in enumerate(TABLE):
        counts = Counter(choice[step] for choice in drawn)
        used = [i for i, p in enumerate(row) if p > 0]
        assert set(counts) <= set(used)
        assert chisquare([counts[i] for i in used], [4000 * row[i] for i in used]).pvalue > 1e-3


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 0.01), min_size=1, max_size=20
    ),
    st.integers(0, 2**64 - 1),
)
def test_dependent_rounding_counts_are_within_one_of_their_share(rows, seed):
    run = tuple(tuple(p / math.fsum(row) for p in row) for row in rows)
    chosen = round_dependently(run, seed, 0)
    for i in range(3):
        assert abs(chosen.count(i) - math.fsum(row[i] for row in run)) < 1 + 1e-6


@pytest.mark.parametrize("draws", ["independent", "stratified"])
def test_a_moving_draw_has_the_steps_probabilities(draws):
    planner = Stochastic(Interpolated((0.9, 0.1), (0.1, 0.5), "cosine"), draws)
    for index in (0, 2, 5):
        images = tuple(range(1500))
        row = planner(StepInfo(index, 6, 7, images)).gates[0]
        counts = Counter(gates.index(1.0) if 1.0 in gates else 2 for gates in row)
        probabilities = [p for p in planner.probabilities(StepInfo(index, 6)) if p > 0]
        assert (
            chisquare([counts[i] for i in range(len(probabilities))], [1500 * p for p in probabilities]).pvalue > 1e-3
        )


def test_what_a_method_cannot_do_is_refused():
    regional = Regional(START, END, random_mask())
    with pytest.raises(ValueError, match="soup averages the weights.*another preference in a region"):
        Soup(regional)
    with pytest.raises(ValueError, match="One adapter is drawn for the whole image.*method 'blend'"):
        Stochastic(Interpolated((0.1, 0.2, 0.3), regional))
    with pytest.raises(ValueError, match="negative one cannot be drawn"):
        Stochastic(Interpolated((0.5, 0.5), (1.5, -0.5)))
    with pytest.raises(ValueError, match="needs the size of the latent"):
        regional(StepInfo(pixels=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curve": "wild"}, "curve is 'wild': choose one of linear, cosine, step"),
        ({"start_at": 0.8, "end_at": 0.2}, "moves from 0.8 to 0.2"),
        ({"end_at": 1.5}, "moves from 0.0 to 1.5"),
        ({"start_at": math.nan}, "moves from nan"),
    ],
)
def test_bad_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PreferenceSchedule(Preference((1,)), Preference((1,)), **changes)


@pytest.mark.parametrize(
    ("mask", "feather", "message"),
    [
        (torch.zeros(4, 4), 0, "shape \\[4, 4\\]: it must be masks x height x width"),
        (torch.zeros(0, 4, 4), 0, "shape \\[0, 4, 4\\]"),
        (torch.full((1, 4, 4), 1.5), 0, "go from 1.5 to 1.5"),
        (torch.full((1, 4, 4), math.nan), 0, "from 0 to 1"),
        (torch.zeros(1, 4, 4), -1, "feather is -1"),
    ],
)
def test_bad_regions_are_refused(mask, feather, message):
    with pytest.raises(ValueError, match=message):
        RegionalPreference(Preference((1,)), Preference((1,)), mask, feather)


def test_more_weights_cannot_follow():
    schedule = PreferenceSchedule(Preference((1,)), Preference((1,)))
    region = RegionalPreference(schedule, Preference((1,)), torch.zeros(1, 2, 2))
    for preference, name in ((schedule, "schedule"), (region, "regional preference")):
        with pytest.raises(ValueError, match=f"{name} cannot be continued by more weights: chain"):
            preference.followed_by(Preference((1,)))


def test_another_kl_scale_reaches_every_part():
    schedule = PreferenceSchedule(Preference((1,), 0.5), Preference((1,), 2.0))
    region = RegionalPreference(schedule, Preference((1,), 3.0), torch.zeros(1, 2, 2))
    assert {part.kl_scale for part in region.at_kl_scale(0.7).parts} == {0.7}
