"""The fused Gaussian step against the product of densities, computed on a grid."""

import pytest
import torch
from diffusion_blend.blending.msdda import fuse_gaussians, step_factors
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("coefficients", [(0.5, 0.5), (0.2, 0.3, 0.5), (1.4, -0.4), (0.6, 0.3, 0.1)])
def test_mean_and_deviation_are_those_of_the_normalised_product(coefficients):
    means = (0.3, -1.2, 2.0)[: len(coefficients)]
    deviations = (0.4, 0.7, 1.1)[: len(coefficients)]
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.double)
    log_density = sum(
        c * torch.distributions.Normal(mu, s).log_prob(grid)
        for c, mu, s in zip(coefficients, means, deviations, strict=True)
    )
    density = torch.softmax(log_density, 0)
    mean = (density * grid).sum()
    deviation = (density * (grid - mean) ** 2).sum().sqrt()
    fused, s = fuse_gaussians([torch.tensor([mu], dtype=torch.double) for mu in means], deviations, coefficients)
    assert fused.item() == pytest.approx(mean.item(), rel=1e-6, abs=1e-6)
    assert s == pytest.approx(deviation.item(), rel=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4).filter(lambda c: abs(sum(c)) > 0.1), st.floats(0.01, 5))
def test_with_equal_deviations_it_is_the_blend(c, deviation):
    coefficients = [value / sum(c) for value in c]
    means = [torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.double) for i in range(len(c))]
    fused, s = fuse_gaussians([mu.clone() for mu in means], [deviation] * len(c), coefficients)
    assert torch.allclose(fused, sum(a * mu for a, mu in zip(coefficients, means, strict=True)), rtol=1e-8, atol=1e-8)
    assert s == pytest.approx(deviation)


def test_the_arguments_are_left_alone():
    means = [torch.ones(2), torch.zeros(2)]
    fuse_gaussians(means, [1.0, 2.0], [0.5, 0.5])
    assert torch.equal(means[0], torch.ones(2))
    assert torch.equal(means[1], torch.zeros(2))


@pytest.mark.parametrize(
    ("deviations", "coefficients", "message"),
    [
        ([1.0], [0.5, 0.5], "give as many of each"),
        ([1.0, 0.0], [0.5, 0.5], "each must be above 0"),
        ([1.0, float("nan")], [0.5, 0.5], "each must be above 0"),
        ([1.0, 0.1], [1.5, -0.5], "it is no distribution"),
    ],
)
def test_products_that_are_no_distribution_are_refused(deviations, coefficients, message):
    with pytest.raises(ValueError, match=message):
        fuse_gaussians([torch.zeros(1), torch.zeros(1)], deviations, coefficients)


@pytest.mark.parametrize("kl_scale", [0.5, 1.0, 1.5, -0.5])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)])
def test_the_factors_make_the_product_of_the_tilted_base_steps(kl_scale, shares):
    """On a grid: ``prod_i [pi_0i exp(lambda r_i / alpha)]^w_i`` with linear rewards, each pi_0i at its adapter's own noise."""
    etas, base_means, slopes = (0.4, 0.8), {0.4: 0.3, 0.8: -0.2}, (1.5, -2.0)
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.double)
    log_density = sum(
        w * (torch.distributions.Normal(base_means[eta], eta).log_prob(grid) + kl_scale * slope * grid)
        for w, eta, slope in zip(shares, etas, slopes, strict=True)
    )
    density = torch.softmax(log_density, 0)
    mean = float((density * grid).sum())
    deviation = float((density * (grid - mean) ** 2).sum().sqrt())
    factors = step_factors([kl_scale * w for w in shares], etas, shares)
    assert sum(factor.coefficient for factor in factors) == pytest.approx(1)
    # Adapter i's step is pi_0i exp(r_i / alpha): the same deviation, the mean moved by s^2 times the slope.
    means = [
        base_means[factor.eta]
        + sum(gate * factor.eta**2 * slope for gate, slope in zip(factor.gates, slopes, strict=True))
        for factor in factors
    ]
    fused, s = fuse_gaussians(
        [torch.tensor([mu], dtype=torch.double) for mu in means],
        [factor.eta for factor in factors],
        [factor.coefficient for factor in factors],
    )
    assert fused.item() == pytest.approx(mean, abs=1e-6)
    assert s == pytest.approx(deviation, rel=1e-6)


def test_the_shares_of_a_fixed_preference_follow_from_its_coefficients():
    assert step_factors((0.25, 0.75), (0.4, 0.8)) == step_factors((0.25, 0.75), (0.4, 0.8), (0.25, 0.75))
    implied, given = step_factors((0.1, 0.3), (0.4, 0.8)), step_factors((0.1, 0.3), (0.4, 0.8), (0.25, 0.75))
    assert [(factor.gates, factor.eta) for factor in implied] == [(factor.gates, factor.eta) for factor in given]
    assert [factor.coefficient for factor in implied] == pytest.approx([factor.coefficient for factor in given])


def test_equal_noises_need_the_base_once():
    factors = step_factors((0.2, 0.2), (0.7, 0.7))
    assert [(factor.gates, factor.eta) for factor in factors] == [
        ((1.0, 0.0), 0.7),
        ((0.0, 1.0), 0.7),
        ((0.0, 0.0), 0.7),
    ]
    assert factors[-1].coefficient == 0.6


def test_the_base_alone_is_continuous_in_the_kl_scale():
    limit = step_factors((0.0, 0.0), (0.4, 0.8), (0.25, 0.75))
    near = [factor for factor in step_factors((2.5e-10, 7.5e-10), (0.4, 0.8), (0.25, 0.75)) if not any(factor.gates)]
    assert [factor.eta for factor in near] == [factor.eta for factor in limit] == [0.4, 0.8]
    assert [factor.coefficient for factor in near] == pytest.approx([factor.coefficient for factor in limit])
    assert [factor.eta for factor in step_factors((0.0, 0.0), (0.4, 0.8), base_eta=0.9)] == [0.9]


def test_etas_that_do_not_match_the_adapters_are_refused():
    with pytest.raises(ValueError, match="1 etas for 2 adapters"):
        step_factors((0.5, 0.5), (1.0,))
