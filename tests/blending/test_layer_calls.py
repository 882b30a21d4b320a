"""Layers whose call folds an activation and a residual, and layers that are computed without a call."""

import pytest
import torch
from diffusion_blend.blending.adapters import AdapterBank, LowRank
from diffusion_blend.blending.exchange import RowsDoNotFit
from diffusion_blend.blending.side_path import SidePath
from diffusion_blend.blending.updates import BiasDifference, Difference, ScaledOutput
from torch import nn
from torch.nn import functional as F


class FusedLinear(nn.Linear):
    """A Linear with the signature of newer hosts."""

    def forward(self, input, input_act=None, act_weight=None, residual=None, residual_scale=None):
        if input_act == "gelu_tanh":
            input = F.gelu(input, approximate="tanh")
        elif input_act == "swiglu":
            gate, up = input.chunk(2, dim=-1)
            input = F.silu(gate) * up
        output = super().forward(input)
        if residual is None:
            return output
        return residual + output if residual_scale is None else residual + residual_scale * output


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), FusedLinear(8, 5)


def bank(scale=1.0):
    generator = torch.Generator().manual_seed(3)
    pairs = [
        LowRank(torch.randn(2, 8, generator=generator), scale * torch.randn(5, 2, generator=generator))
        for _ in range(2)
    ]
    return AdapterBank([{"second": [pair]} for pair in pairs], torch.float32), pairs


def patched(network, pairs, gates):
    """A copy whose weight has the updates in it."""
    copy = FusedLinear(8, 5)
    copy.load_state_dict(network.second.state_dict())
    copy.weight.data += sum(gate * pair.up @ pair.down for gate, pair in zip(gates, pairs, strict=True))
    return copy


ONE, TWO = torch.randn(4, 3, 5), torch.randn(4, 1, 5)
CALLS = [
    ((), {}),
    ((), {"input_act": "gelu_tanh"}),
    ((), {"input_act": "swiglu"}),
    ((), {"residual": ONE}),
    ((), {"residual": ONE, "residual_scale": TWO}),
    ((), {"residual": ONE, "residual_scale": 0.25}),
    (("gelu_tanh", None, ONE, TWO), {}),
    (("swiglu",), {"residual": ONE, "residual_scale": TWO}),
]


@pytest.mark.parametrize("rows", [((1.0, 0.0),), ((0.3, -0.7),), ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0))])
@pytest.mark.parametrize("number", range(len(CALLS)))
@torch.no_grad()
def test_a_folded_call_is_that_of_the_patched_layer(number, rows):
    args, kwargs = CALLS[number]
    network = Network()
    x = torch.randn(4, 3, 16 if "swiglu" in (*args, kwargs.get("input_act")) else 8)
    factors, pairs = bank()
    path = SidePath(factors)
    path.install(network)
    with path.gated(rows):
        blended = network.second(x, *args, **kwargs)
    path.remove()
    each = rows * 4 if len(rows) == 1 else rows

    def part(value, image):
        return value[image : image + 1] if isinstance(value, torch.Tensor) else value

    for image, gates in enumerate(each):
        own = [part(value, image) for value in args], {name: part(value, image) for name, value in kwargs.items()}
        expected = patched(network, pairs, gates)(x[image : image + 1], *own[0], **own[1])
        torch.testing.assert_close(blended[image : image + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [((1.0, 0.0),), ((0.3, -0.7),), ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0))])
@pytest.mark.parametrize("number", range(len(CALLS)))
@torch.no_grad()
def test_a_kind_that_needs_the_layers_own_output_gets_it_without_the_residual(number, rows):
    """An adapter of a scaled output, as a DoRA's, and one of low rank."""
    args, kwargs = CALLS[number]
    network = Network()
    x = torch.randn(4, 3, 16 if "swiglu" in (*args, kwargs.get("input_act")) else 8)
    scale, pair = torch.randn(5), LowRank(torch.randn(2, 8), torch.randn(5, 2))
    scaled = ScaledOutput(scale, network.second.bias.detach())
    path = SidePath(AdapterBank([{"second": [scaled]}, {"second": [pair]}], torch.float32))
    path.install(network)
    with path.gated(rows):
        blended = network.second(x, *args, **kwargs)
    path.remove()

    def part(value, image):
        return value[image : image + 1] if isinstance(value, torch.Tensor) else value

    for image, gates in enumerate(rows * 4 if len(rows) == 1 else rows):
        own = [part(value, image) for value in args], {name: part(value, image) for name, value in kwargs.items()}
        copy = FusedLinear(8, 5)
        copy.load_state_dict(network.second.state_dict())
        copy.weight.data += gates[0] * scale[:, None] * copy.weight + gates[1] * pair.up @ pair.down
        expected = copy(x[image : image + 1], *own[0], **own[1])
        torch.testing.assert_close(blended[image : image + 1], expected, rtol=1e-5, atol=1e-5)


class Odd(nn.Linear):
    def forward(self, x, *_, **__):
        return super().forward(x)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"clamp": 3}, "Layer second is called with clamp, which this version does not know"),
        ((), {"input_act": "relu2"}, "Layer second applies 'relu2' to its input, and only gelu_tanh, swiglu are known"),
        (("gelu_tanh", torch.ones(8)), {}, "called with act_weight"),
        ((None, None, None, None, 7), {}, "called with argument 6"),
    ],
)
def test_what_is_not_known_is_refused_by_name(args, kwargs, message):
    network = Network()
    network.second = Odd(8, 5)
    path = SidePath(bank()[0])
    path.install(network)
    with pytest.raises(ValueError, match=message), path.gated(((1.0, 0.0),)):
        network.second(torch.randn(2, 8), *args, **kwargs)


class Around(nn.Module):
    """Computes its layer without calling it, as a fused kernel does."""

    def __init__(self, calls):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 5)])
        self.calls = calls

    def forward(self, x):
        return self.layers[0](x) if self.calls else F.linear(x, self.layers[0].weight, self.layers[0].bias)


@pytest.mark.parametrize(
    ("calls", "run", "size", "found"),
    [(False, True, 1.0, True), (True, True, 1.0, False), (False, False, 1.0, False), (False, True, 0.0, False)],
)
@torch.no_grad()
def test_layers_that_are_passed_by_are_found(calls, run, size, found):
    """Not those of a part of the network that does not run, nor those whose update is 0."""
    network = nn.Module()
    network.part = Around(calls)
    adapters = [{"part.layers.0": [LowRank(torch.randn(2, 8), size * torch.randn(5, 2))]}]
    path = SidePath(AdapterBank(adapters, torch.float32))
    path.install(network)
    with path.gated(((1.0,),)):
        if run:
            network.part(torch.randn(2, 8))
    assert path.bypassed() == (["part.layers.0"] if found else [])
    path.remove()
    assert not network.part._forward_pre_hooks and not network.part.layers[0]._forward_hooks


@torch.no_grad()
def test_differences_of_a_layer_that_is_passed_by_are_exchanged_from_the_second_call_on():
    network = nn.Module()
    network.part = Around(calls=False)
    layer = network.part.layers[0]
    weight, bias, original = torch.randn(5, 8), torch.randn(5), dict(layer.named_parameters())
    path = SidePath(AdapterBank([{"part.layers.0": [Difference(weight), BiasDifference(bias)]}] * 2, torch.float32))
    path.install(network)
    x = torch.randn(2, 8)
    with path.gated(((0.5, -2.0),)):
        network.part(x)
    assert path.exchange_bypassed()
    with path.gated(((0.5, -2.0),)):
        result = network.part(x)
    assert not path.exchange_bypassed() and not path.bypassed()
    torch.testing.assert_close(result, F.linear(x, layer.weight - 1.5 * weight, layer.bias - 1.5 * bias))
    with pytest.raises(RowsDoNotFit), path.gated(((1.0, 0.0), (0.0, 1.0))):
        network.part(x)
    path.remove()
    assert all(getattr(layer, name) is parameter for name, parameter in original.items())


def test_a_low_rank_update_of_a_layer_that_is_passed_by_is_not_exchanged():
    network = nn.Module()
    network.part = Around(calls=False)
    path = SidePath(AdapterBank([{"part.layers.0": [LowRank(torch.randn(2, 8), torch.randn(5, 2))]}], torch.float32))
    path.install(network)
    with path.gated(((1.0,),)):
        network.part(torch.randn(2, 8))
    assert not path.exchange_bypassed() and path.bypassed() == ["part.layers.0"]
    path.remove()
