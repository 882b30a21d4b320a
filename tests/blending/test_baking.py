"""Baked updates against torch's own layers with patched weights, and against the closest matrix of a rank."""

import pytest
import torch
from diffusion_blend.blending.baking import dense_difference, join_pairs, reduce_rank
from diffusion_blend.blending.layers import layer_of
from diffusion_blend.blending.updates import (
    BiasDifference,
    Difference,
    HadamardProduct,
    KroneckerProduct,
    LowRank,
    RotatedOutput,
    ScaledOutput,
    Slice,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.double)


LINEAR = {
    "lora": LowRank(normal(2, 6), normal(8, 2)),
    "difference": Difference(normal(8, 6)),
    "loha": HadamardProduct(normal(8, 2), normal(2, 6), normal(8, 3), normal(3, 6)),
    "lokr": KroneckerProduct(normal(2, 3), normal(4, 2)),
    "lokr, factored": KroneckerProduct(normal(2, 3), normal(1, 2), normal(4, 1)),
    "dora": ScaledOutput(normal(8), normal(8, seed=4)),
    "oft": RotatedOutput(normal(2, 4, 4), normal(8, seed=4)),
    "rows": Slice(LowRank(normal(1, 6), normal(3, 1)), 0, 4, 3),
    "columns": Slice(Difference(normal(8, 2)), 1, 1, 2),
    "rows of a dora": Slice(ScaledOutput(normal(3), normal(8, seed=4)[2:5]), 0, 2, 3),
}
CONVOLUTION = {
    "locon": LowRank(normal(2, 4, 3, 3), normal(6, 2)),
    "loha": HadamardProduct(normal(6, 2), normal(2, 4, 3, 3), normal(6, 2, seed=1), normal(2, 4, 3, 3, seed=1)),
    "lokr": KroneckerProduct(normal(2, 2), normal(3, 2, 3, 3)),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_the_difference_of_a_linear_layer_is_what_the_update_adds(kind):
    layer = torch.nn.Linear(6, 8, dtype=torch.double)
    layer.bias.data = normal(8, seed=4)  # the kinds that need it hold it
    x = normal(5, 6, seed=9)
    with torch.no_grad():
        y = layer(x)
        expected = LINEAR[kind].delta(layer_of(layer, "layer"), x, y)
        difference = dense_difference(LINEAR[kind], lambda: layer.weight)
        assert torch.allclose(torch.nn.functional.linear(x, layer.weight + difference, layer.bias) - y, expected)


@pytest.mark.parametrize("kind", CONVOLUTION)
def test_the_difference_of_a_convolution_is_what_the_update_adds(kind):
    layer = torch.nn.Conv2d(4, 6, 3, padding=1, dtype=torch.double)
    x = normal(2, 4, 5, 5)
    with torch.no_grad():
        expected = CONVOLUTION[kind].delta(layer_of(layer, "layer"), x, layer(x))
        difference = dense_difference(CONVOLUTION[kind], lambda: layer.weight)
        assert torch.allclose(torch.nn.functional.conv2d(x, difference, padding=1), expected)


def test_a_bias_is_its_own_difference():
    assert torch.equal(dense_difference(BiasDifference(normal(3)), lambda: pytest.fail("not needed")), normal(3))


def test_joined_pairs_are_the_weighted_sum():
    pairs = [(0.3, LowRank(normal(2, 4, 3, 3), normal(6, 2))), (-1.2, LowRank(normal(5, 4, 3, 3), normal(6, 5)))]
    joined = join_pairs(pairs)
    assert joined.down.shape == (7, 4, 3, 3)
    expected = sum(c * dense_difference(pair, torch.Tensor) for c, pair in pairs)
    assert torch.allclose(dense_difference(joined, torch.Tensor), expected)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 5, 20])
def test_a_reduced_update_is_the_closest_of_its_rank(rank, dense):
    pair = LowRank(normal(5, 4, 3, 3), normal(6, 5))
    whole = dense_difference(pair, torch.Tensor)
    reduced, error = reduce_rank(whole if dense else pair, rank)
    assert reduced.down.shape[0] <= rank
    values = torch.linalg.svdvals(whole.flatten(1))
    expected = float(values[rank:].norm() / values.norm())
    assert error == pytest.approx(expected, abs=1e-7)
    left = (dense_difference(reduced, torch.Tensor) - whole).norm() / whole.norm()
    assert float(left) == pytest.approx(expected, abs=1e-6)


def test_an_update_of_zero_has_no_error():
    assert reduce_rank(torch.zeros(3, 4), 1)[1] == 0
