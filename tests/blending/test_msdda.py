"""The fused Gaussian step against the product of densities, computed on a grid."""

import pytest
import torch
from diffusion_blend.blending.msdda import fuse_gaussians
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
