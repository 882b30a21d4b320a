"""Every kind of update against the layer with the changed weight, computed by torch itself."""

import pytest
import torch
from diffusion_blend.blending.adapters import AdapterBank, LowRank
from diffusion_blend.blending.exchange import RowsDoNotFit
from diffusion_blend.blending.layers import layer_of
from diffusion_blend.blending.side_path import SidePath
from diffusion_blend.blending.updates import (
    BiasDifference,
    Difference,
    HadamardProduct,
    KroneckerProduct,
    ParameterDifference,
    RotatedOutput,
    ScaledOutput,
    Slice,
)
from torch import nn

LAYERS = {
    "linear": (lambda: nn.Linear(6, 12), (3, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 12, 3, stride=2, padding=1, bias=False), (3, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 12, 3, stride=2, padding=2, dilation=2), (3, 6, 9, 8)),
    "circular": (lambda: nn.Conv2d(6, 12, 3, padding=1, padding_mode="circular"), (3, 6, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(6, 12, (1, 3, 3), padding=(0, 1, 1)), (3, 6, 2, 4, 4)),
    "grouped": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3), (3, 6, 4, 4)),
    "embedding": (lambda: nn.Embedding(9, 12), None),
    "layer norm": (lambda: nn.LayerNorm(12), (3, 5, 12)),
    "group norm": (lambda: nn.GroupNorm(4, 12), (3, 12, 4, 5)),
    "rms norm": (lambda: nn.RMSNorm(12, eps=1e-3), (3, 5, 12)),
}
MATRICES = ("linear", "conv1d", "conv2d", "circular", "conv3d")
ROWS = {
    "one": ((0.0, 1.0),),
    "soup": ((0.5, -0.25),),
    "base": ((0.0, 0.0),),
    "per image": ((1.0, 0.0), (0.0, 0.0), (0.5, -2.0)),
}


def randn(*shape):
    return torch.randn(shape, dtype=torch.double)


def difference(layer):
    weight = randn(*layer.weight.shape)
    return [Difference(weight)], {"weight": weight}


def bias(layer):
    value = randn(12)
    return [BiasDifference(value)], {"bias": value}


def weight_and_bias(layer):
    (weight,), first = difference(layer)
    (value,), second = bias(layer)
    return [weight, value], first | second


def low_rank_and_difference(layer):
    down, up = randn(2, *layer.weight.shape[1:]), randn(12, 2)
    (other,), values = difference(layer)
    return [LowRank(down, up), other], {"weight": values["weight"] + (up @ down.flatten(1)).view_as(layer.weight)}


def hadamard(layer):
    tail = layer.weight.shape[1:]
    up1, down1, up2, down2 = randn(12, 2), randn(2, *tail), randn(12, 3), randn(3, *tail)
    product = (up1 @ down1.flatten(1)) * (up2 @ down2.flatten(1))
    return [HadamardProduct(up1, down1, up2, down2)], {"weight": product.view_as(layer.weight)}


def kronecker(rows, columns, factored):
    def make(layer):
        kernel = layer.weight.shape[2:]
        left, right, up = randn(rows, columns), randn(12 // rows, 6 // columns, *kernel), None
        whole = right
        if factored:
            right, up = randn(1, 6 // columns, *kernel), randn(12 // rows, 1)
            whole = torch.einsum("cr,r...->c...", up, right)
        product = torch.kron(left.reshape(rows, columns, *[1] * len(kernel)), whole)
        return [KroneckerProduct(left, right, up)], {"weight": product}

    return make


def rescaled(layer):
    scale, down, up = randn(12), randn(2, *layer.weight.shape[1:]), randn(12, 2)
    inner = (up @ down.flatten(1)).view_as(layer.weight)
    patched = scale.view(-1, *[1] * (inner.ndim - 1)) * (layer.weight + inner)
    bias = None if layer.bias is None else layer.bias.detach()
    return [ScaledOutput(scale - 1, bias), LowRank(down, scale[:, None] * up)], {"weight": patched - layer.weight}


def rotated(layer):
    blocks = randn(3, 4, 4)
    patched = torch.block_diag(*blocks) @ layer.weight.flatten(1)
    bias = None if layer.bias is None else layer.bias.detach()
    return [RotatedOutput(blocks - torch.eye(4), bias)], {"weight": patched.view_as(layer.weight) - layer.weight}


def slices(layer):
    """Make updates of rows 2..6 and columns 1..4 of a fused layer."""
    tail = layer.weight.shape[2:]
    rows, columns = randn(5, 6, *tail), randn(12, 4, *tail)
    change = torch.zeros_like(layer.weight)
    change[2:7] += rows
    change[:, 1:5] += columns
    return [Slice(Difference(rows), 0, 2, 5), Slice(Difference(columns), 1, 1, 4)], {"weight": change}


KINDS = {
    "difference": (difference, tuple(LAYERS)),
    "bias": (bias, ("linear", "conv2d", "conv3d", "grouped", "layer norm", "group norm")),
    "weight and bias": (weight_and_bias, ("linear", "conv2d", "layer norm", "group norm")),
    "low rank and difference": (low_rank_and_difference, MATRICES),
    "hadamard": (hadamard, MATRICES),
    "kronecker 2x2": (kronecker(2, 2, False), MATRICES),
    "kronecker 6x3": (kronecker(6, 3, False), MATRICES),
    "kronecker 1x6": (kronecker(1, 6, False), MATRICES),
    "kronecker factored": (kronecker(3, 2, True), MATRICES),
    "dora": (rescaled, MATRICES),
    "oft": (rotated, MATRICES),
    "slices": (slices, MATRICES),
}


def patched(layer, changes, gates, x):
    """Run the layer's own forward with its parameters changed."""
    values = {
        name: getattr(layer, name) + sum(g * c[name] for g, c in zip(gates, changes, strict=True) if name in c)
        for name in {name for change in changes for name in change}
    }
    return torch.func.functional_call(layer, values, (x,))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in KINDS.items() for name in names])
def test_equals_the_layer_with_the_changed_weight(kind, name, row):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    made = [KINDS[kind][0](layer) for _ in range(2)]
    path = SidePath(AdapterBank([{"0": updates} for updates, _ in made], torch.double))
    network = nn.Sequential(layer)
    x = torch.randint(9, (3, 5)) if shape is None else randn(*shape)
    with torch.no_grad():
        plain = network(x)
        gates = row if len(row) > 1 else row * 3
        expected = torch.cat([patched(layer, [c for _, c in made], g, x[i : i + 1]) for i, g in enumerate(gates)])
        path.install(network)
        with path.gated(row):
            result = network(x)
        assert torch.equal(network(x), plain)
        path.remove()
        assert torch.equal(network(x), plain)
    assert torch.allclose(result, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(result, plain) == (not any(any(gates) for gates in row))


def test_frames_folded_into_the_batch_keep_their_images_gates():
    layer = nn.Linear(4, 4).double()
    weight = randn(4, 4)
    path = SidePath(AdapterBank([{"0": [Difference(weight)]}], torch.double))
    network = nn.Sequential(layer)
    x = randn(6, 4)
    with torch.no_grad():
        path.install(network)
        with path.gated(((1.0,), (0.0,))):
            result = network(x)
        with pytest.raises(RowsDoNotFit, match="5 rows for 2 images"), path.gated(((1.0,), (0.0,))):
            network(x[:5])
        path.remove()
        assert torch.allclose(result[:3], patched(layer, [{"weight": weight}], (1.0,), x[:3]))
        assert torch.allclose(result[3:], layer(x[3:]))


class Modulated(nn.Module):
    """A network with a parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Parameter(randn(4))
        self.layer = nn.Linear(4, 4).double()

    def forward(self, x):
        return self.layer(x * self.modulation)


def test_a_parameter_of_no_layer_is_exchanged_during_the_call_and_put_back():
    network = Modulated()
    original, original_value = network.modulation, network.modulation.detach().clone()
    changes = [randn(4), randn(4)]
    path = SidePath(AdapterBank([{"modulation": [ParameterDifference(c)]} for c in changes], torch.double))
    x = randn(2, 4)
    with torch.no_grad():
        path.install(network)
        with path.gated(((0.5, -2.0),)):
            result = network(x)
        with pytest.raises(KeyboardInterrupt), path.gated(((1.0, 0.0),)):
            raise KeyboardInterrupt
        with pytest.raises(RowsDoNotFit, match="that all images of a call share"), path.gated(((1.0, 0.0), (0.0, 1.0))):
            network(x)
        assert network.modulation is original
        path.remove()
    assert torch.equal(network.modulation, original_value)
    expected = network.layer(x * (original_value + 0.5 * changes[0] - 2 * changes[1]))
    assert torch.allclose(result, expected, atol=1e-6)  # the sum is made in float32


def test_factors_take_the_inputs_dtype_and_the_bank_counts_all_of_them():
    layer = nn.Linear(6, 12, dtype=torch.bfloat16)
    updates, _ = kronecker(2, 2, False)(layer.double())
    bank = AdapterBank([{"0": [*updates, LowRank(randn(2, 6), randn(12, 2))]}], torch.float32)
    assert sum(part.numel() for part in bank.parameters()) == 4 + 6 * 3 + 2 * 6 + 12 * 2
    network = nn.Sequential(nn.Linear(6, 12, dtype=torch.bfloat16))
    path = SidePath(bank)
    path.install(network)
    with torch.no_grad(), path.gated(((1.0,),)):
        assert network(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    path.remove()


def test_a_module_that_applies_no_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="'here' is a Softmax"):
        layer_of(nn.Softmax(-1), "here")
    with pytest.raises(ValueError, match="ConvTranspose2d"):
        layer_of(nn.ConvTranspose2d(2, 2, 3), "up")
