"""Plans: the rows of gates and the coefficients of every method."""

import math
from collections import Counter

import pytest
import torch
from diffusion_blend.blending.combine import combine, evaluate
from diffusion_blend.blending.plans import (
    Blend,
    EarlyBlend,
    Extrapolation,
    Plan,
    Soup,
    Stochastic,
    base_coefficient,
    make_planner,
)
from diffusion_blend.blending.step_info import StepInfo
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare


def at_step(index=0, count=20, seed=7, images=(0,)):
    return StepInfo(index, count, seed, images)


coefficients = st.lists(st.floats(-3, 3), min_size=1, max_size=5).map(tuple)


@given(coefficients)
def test_blend_is_affine_and_gives_back_its_coefficients(c):
    plan = Blend(c)(at_step())
    assert math.fsum(plan.mix) == pytest.approx(1, abs=1e-9)
    # sum_k mix_k gates_k = c: each adapter's total share
    shares = [math.fsum(m * row[0][i] for m, row in zip(plan.mix, plan.gates, strict=True)) for i in range(len(c))]
    assert shares == pytest.approx(c, abs=1e-9)
    assert all(sum(gate != 0 for gate in row[0]) <= 1 for row in plan.gates)


def test_blend_evaluates_nothing_it_does_not_need():
    assert Blend((0.0, 1.0))(at_step()) == Plan((((0.0, 1.0),),), (1.0,))
    assert Blend((0.0, 0.0))(at_step()) == Plan((((0.0, 0.0),),), (1.0,))
    assert len(Blend((0.3, 0.7))(at_step()).mix) == 2
    assert len(Blend((0.3, 0.3))(at_step()).mix) == 3


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
def test_rounding_of_normalised_weights_costs_no_evaluation(weights):
    total = math.fsum(weights)
    assert len(Blend(tuple(w / total for w in weights))(at_step()).mix) == len(weights)


def test_soup_is_one_call_with_the_coefficients_as_gates():
    assert Soup((0.5, 1.5))(at_step()) == Plan((((0.5, 1.5),),), (1.0,))


def test_on_a_linear_network_blend_and_soup_agree_and_the_mean_of_stochastic_is_both():
    c, outputs = (0.2, 0.3), (5.0, -7.0)

    def linear(row):
        return torch.tensor([1.0 + sum(g * o for g, o in zip(gates, outputs, strict=True)) for gates in row])

    blend = evaluate(Blend(c)(at_step()), linear)
    assert torch.allclose(blend, evaluate(Soup(c)(at_step()), linear))
    images = tuple(range(4000))
    drawn = evaluate(Stochastic(c, "independent")(at_step(images=images)), linear)
    assert drawn.mean().item() == pytest.approx(blend.item(), abs=0.2)  # 3 sigma of the mean is 0.18


@given(coefficients, st.integers(1, 100), st.integers(0, 100))
def test_early_blends_its_first_steps_and_extrapolates_the_residual_after_them(c, count, hundredths):
    early = -(-hundredths * count // 100)  # a part of a step counts as a whole step
    blended = set(range(early)) - ({early - 2} if 4 <= early < count else set())
    for step in (at_step(index, count) for index in range(count)):
        plan, blend, soup = EarlyBlend(c, hundredths / 100)(step), Blend(c)(step), Soup(c)(step)
        if blend.gates == soup.gates or not early:
            assert plan == soup
        elif step.index not in blended:
            assert (plan.gates, plan.mix) == (soup.gates, soup.mix)
            assert plan.extrapolation == Extrapolation(power=2.5, ahead=0.5)
            assert plan.without_residual.gates == (*blend.gates, *soup.gates)
            assert plan.without_residual.residual_mix == (*blend.mix, -1)
        elif step.index + 1 in blended or step.index + 1 == count:
            assert plan == blend
        else:
            assert plan.gates == (*blend.gates, *soup.gates) and plan.extrapolation is None
            assert plan.mix == (*blend.mix, 0) and plan.residual_mix == (*blend.mix, -1)


TABLE = {
    (10, 0.5): "BBCRCRRRRR",
    (20, 0.25): "BBCRCRRRRRRRRRRRRRRR",
    (10, 0.45): "BBCRCRRRRR",
    (10, 0.4): "BCRCRRRRRR",
    (10, 0.3): "BBCRRRRRRR",
    (4, 0.5): "BCRR",
    (4, 1.0): "BBBB",
    (4, 0.0): "SSSS",
}
"""Steps and share -> what each step is: B the blend, C the blend whose residual is cached, R the soup plus the extrapolated
residual, S the soup. The residual is extrapolated from two steps, between which one step is left out to know its change."""


@pytest.mark.parametrize(("count", "share"), TABLE)
def test_the_steps_of_early_by_a_written_table(count, share):
    blend = Blend((0.2, 0.3))(at_step())

    def letter(plan):
        if plan.extrapolation is not None:
            return "R"
        if plan == blend:
            return "B"
        return "S" if len(plan.gates) == 1 else "C"

    assert (
        "".join(letter(EarlyBlend((0.2, 0.3), share)(at_step(i, count))) for i in range(count)) == TABLE[count, share]
    )


@given(coefficients, st.integers(1, 100))
def test_early_is_the_blend_at_share_1_and_the_soup_at_share_0(c, count):
    for index in range(count):
        step = at_step(index, count)
        assert EarlyBlend(c, 1.0)(step) == Blend(c)(step)
        assert EarlyBlend(c, 0.0)(step) == Soup(c)(step)
        assert EarlyBlend((1.0,), 0.5)(step) == Blend((1.0,))(
            step
        )  # with one adapter the blend costs no more than the soup


def test_a_plan_that_extrapolates_cannot_be_evaluated_by_itself():
    with pytest.raises(ValueError, match="needs the residual of an earlier step"):
        evaluate(EarlyBlend((0.5, 0.5))(at_step(9, 10)), lambda row: torch.zeros(1))


@pytest.mark.parametrize("count", [20, 30, 50])
def test_early_takes_at_most_one_and_a_half_calls_a_step_for_four_adapters(count):
    planner = EarlyBlend((0.25,) * 4)
    assert 1.4 < sum(len(planner(at_step(index, count)).gates) for index in range(count)) / count <= 1.5


@pytest.mark.parametrize("share", [-0.1, 1.01, math.nan])
def test_early_refuses_another_share(share):
    with pytest.raises(ValueError, match="early_share is .*: it is a share of the run's steps, from 0 to 1"):
        EarlyBlend((1.0,), share)


@pytest.mark.parametrize("draws", ["independent", "stratified"])
def test_stochastic_frequencies_pass_a_chi_square_test_at_every_step(draws):
    probabilities = (0.5, 0.2, 0.1)  # and 0.2 for the base
    planner = Stochastic(probabilities, draws)
    for index in (0, 7, 19):
        row = planner(at_step(index=index, images=tuple(range(3000)))).gates[0]
        counts = Counter(gates.index(1.0) if 1.0 in gates else 3 for gates in row)
        expected = [3000 * p for p in (*probabilities, 0.2)]
        assert chisquare([counts[i] for i in range(4)], expected).pvalue > 1e-3


def test_independent_draws_of_different_steps_are_independent():
    planner = Stochastic((0.5, 0.5), "independent")
    images = tuple(range(4000))
    first, second = (planner(at_step(index=i, images=images)).gates[0] for i in (3, 4))
    pairs = Counter(zip(first, second, strict=True))
    assert chisquare(list(pairs.values())).pvalue > 1e-3


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(1, 60),
    st.integers(0, 2**64 - 1),
    st.integers(0, 50),
)
def test_stratified_counts_are_within_one_of_their_share(weights, kl_scale, count, seed, image):
    total = math.fsum(weights)
    c = tuple(kl_scale * w / total for w in weights)
    planner = Stochastic(c, "stratified")
    rows = [planner(at_step(i, count, seed, (image,))).gates[0][0] for i in range(count)]
    for adapter, share in enumerate(c):
        assert abs(sum(row[adapter] for row in rows) - share * count) < 1 + 1e-6


@pytest.mark.parametrize("draws", ["independent", "stratified"])
def test_a_draw_depends_on_seed_step_and_image_alone(draws):
    planner = Stochastic((0.4, 0.3, 0.3), draws)
    alone = [planner(at_step(5, 20, 11, (image,))).gates[0][0] for image in range(40)]
    together = planner(at_step(5, 20, 11, tuple(range(40)))).gates[0]
    assert list(together) == alone
    assert alone != [planner(at_step(5, 20, 12, (image,))).gates[0][0] for image in range(40)]
    assert alone != [planner(at_step(6, 20, 11, (image,))).gates[0][0] for image in range(40)]


def test_images_that_drew_the_same_share_one_row():
    assert Stochastic((1.0,))(at_step(images=(0, 1, 2))).gates == (((1.0,),),)


def test_the_global_generator_is_neither_used_nor_moved():
    planner = Stochastic((0.5, 0.5), "independent")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = planner(at_step(images=tuple(range(10))))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert planner(at_step(images=tuple(range(10)))) == first


@pytest.mark.parametrize("c", [(1.2, -0.2), (0.8, 0.8), (-0.5,)])
def test_negative_probabilities_are_refused_with_the_reason(c):
    with pytest.raises(ValueError, match="negative one cannot be drawn. Set kl_scale between 0 and 1"):
        Stochastic(c)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="draws is 'often': choose one of stratified, independent"):
        Stochastic((1.0,), "often")
    with pytest.raises(ValueError, match="method is 'magic': choose one of blend, stochastic, soup, early"):
        make_planner("magic", (1.0,))


def test_a_step_outside_the_run_is_refused():
    with pytest.raises(ValueError, match="Step 20 of a run of 20 steps"):
        Stochastic((0.5, 0.5))(at_step(index=20))


def test_methods_by_name():
    assert make_planner("blend", (1.0,)) == Blend((1.0,))
    assert make_planner("soup", (1.0,)) == Soup((1.0,))
    assert make_planner("early", (1.0,), early_share=0.4) == EarlyBlend((1.0,), 0.4)
    assert make_planner("stochastic", (1.0,), "independent") == Stochastic((1.0,), "independent")


def test_base_coefficient_snaps_rounding_to_zero():
    assert base_coefficient((0.1,) * 10) == 0
    assert base_coefficient((0.5, 0.25)) == 0.25


@given(coefficients, st.integers(0, 2**31))
def test_combine_is_the_weighted_sum_and_keeps_dtype(c, seed):
    predictions = torch.randn(len(c), 2, 3, generator=torch.Generator().manual_seed(seed))
    copies = [p.clone() for p in predictions]
    total = combine(copies, c)
    assert total.dtype == torch.float32
    expected = (predictions.double() * torch.tensor(c, dtype=torch.double).view(-1, 1, 1)).sum(0)
    assert torch.allclose(total.double(), expected, atol=1e-5)
    assert all(torch.equal(copy, p) for copy, p in zip(copies, predictions, strict=True))


def test_a_single_prediction_is_returned_bit_for_bit():
    prediction = torch.randn(2, 3)
    assert combine([prediction], [1.0]) is prediction


def test_combine_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="shorter|longer"):
        combine([torch.zeros(1)], [0.5, 0.5])
    with pytest.raises(ValueError, match="at least one evaluation"):
        combine([], [])
