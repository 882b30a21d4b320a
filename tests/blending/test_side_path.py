"""The side path against weights that are patched: ``(W + sum_i g_i B_i A_i) x`` by torch itself."""

import pytest
import torch
from diffusion_blend.blending.adapters import AdapterBank, LowRank
from diffusion_blend.blending.exchange import RowsDoNotFit
from diffusion_blend.blending.layers import layer_shape
from diffusion_blend.blending.side_path import SidePath
from torch import nn

LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (3, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 3, stride=2, padding=1), (3, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=2, dilation=2), (3, 6, 9, 8)),
    "pointwise": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 4, 4)),
    "circular": (lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular"), (3, 6, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(6, 10, (1, 3, 3), padding=(0, 1, 1)), (3, 6, 2, 4, 4)),
}
ROWS = {
    "one": ((0.0, 1.0, 0.0),),
    "soup": ((0.5, -0.25, 2.0),),
    "base": ((0.0, 0.0, 0.0),),
    "per image": ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.5, -2.0, 1.0)),
}


def low_rank(layer, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight
    return LowRank(
        torch.randn(rank, *weight.shape[1:], generator=generator, dtype=torch.double),
        torch.randn(weight.shape[0], rank, generator=generator, dtype=torch.double),
    )


def patched(layer, updates, gates, x):
    """Run the layer's own forward with the changed weight."""
    delta = sum(
        g * (u.up @ u.down.flatten(1)).view_as(layer.weight)
        for g, u in zip(gates, updates, strict=True)
        if u is not None
    )
    return torch.func.functional_call(layer, {"weight": layer.weight + delta}, (x,))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kind", LAYERS)
def test_side_path_equals_patched_weights(kind, row, channels_last):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().double()
    updates = [low_rank(layer, rank, seed) for seed, rank in enumerate((1, 4, 2))]
    network = nn.Sequential(layer)
    path = SidePath(AdapterBank([{"0": [update]} for update in updates], torch.double))
    x = torch.randn(shape, dtype=torch.double)
    if channels_last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    rows = row if len(row) > 1 else row * shape[0]
    with torch.no_grad():
        expected = torch.cat([patched(layer, updates, g, x[i : i + 1]) for i, g in enumerate(rows)])
        plain = network(x)
        path.install(network)
        with path.gated(row):
            result = network(x)
        assert torch.equal(network(x), plain)  # no row is selected, so the adapters have no effect
        path.remove()
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)
    assert result.dtype == x.dtype
    if not any(any(g) for g in row):
        assert torch.equal(result, plain)


def test_with_gradients_the_output_is_not_written_into():
    layer = nn.Linear(4, 4).double()
    update = low_rank(layer, 2, 0)
    path = SidePath(AdapterBank([{"0": [update]}], torch.double))
    network = nn.Sequential(layer)
    path.install(network)
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    with path.gated(((0.7,),)):
        network(x).square().sum().backward()
    path.remove()
    got = x.grad.clone()
    x.grad = None
    patched(layer, [update], (0.7,), x).square().sum().backward()
    assert torch.allclose(got, x.grad)


def test_adapters_may_live_on_different_layers_with_unequal_ranks():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    first, second = low_rank(network[0], 3, 0), low_rank(network[2], 1, 1)
    path = SidePath(AdapterBank([{"0": [first]}, {"2": [second]}], torch.double))
    x = torch.randn(2, 5, dtype=torch.double)
    with torch.no_grad():
        path.install(network)
        with path.gated(((1.0, 0.0), (0.0, 1.0))):
            result = network(x)
        path.remove()
        middle = network[1](patched(network[0], [first], (1.0,), x[:1]))
        assert torch.allclose(result[:1], network[2](middle))
        assert torch.allclose(result[1:], patched(network[2], [second], (1.0,), network[:2](x[1:])))


def test_several_updates_of_one_layer_by_one_adapter_add_up():
    layer = nn.Linear(4, 6).double()
    slices = [LowRank(torch.randn(2, 4).double(), torch.randn(6, 2).double()) for _ in range(3)]
    path = SidePath(AdapterBank([{"0": slices}], torch.double))
    network = nn.Sequential(layer)
    x = torch.randn(2, 4, dtype=torch.double)
    with torch.no_grad():
        path.install(network)
        with path.gated(((1.0,),)):
            result = network(x)
        path.remove()
        assert torch.allclose(result, patched(layer, slices, (1.0, 1.0, 1.0), x))


def test_frames_folded_into_the_batch_keep_their_images_gates():
    layer = nn.Linear(4, 4).double()
    update = low_rank(layer, 2, 0)
    path = SidePath(AdapterBank([{"0": [update]}], torch.double))
    network = nn.Sequential(layer)
    x = torch.randn(6, 4, dtype=torch.double)  # 2 images of 3 frames
    with torch.no_grad():
        path.install(network)
        with path.gated(((1.0,), (0.0,))):
            result = network(x)
        path.remove()
        assert torch.allclose(result[:3], patched(layer, [update], (1.0,), x[:3]))
        assert torch.allclose(result[3:], layer(x[3:]))


def test_an_input_without_a_row_per_image_is_refused_and_leaves_the_path_silent():
    network = nn.Sequential(nn.Linear(4, 4))
    path = SidePath(AdapterBank([{"0": [LowRank(torch.randn(1, 4), torch.randn(4, 1))]}], torch.float32))
    path.install(network)
    with pytest.raises(RowsDoNotFit, match="3 rows for 2 images"), torch.no_grad(), path.gated(((1.0,), (0.0,))):
        network(torch.randn(3, 4))
    x = torch.randn(3, 4)
    assert torch.equal(network(x), network[0].forward(x))
    path.remove()


def test_removal_leaves_no_hook_even_after_a_failed_installation():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    pair = LowRank(torch.randn(1, 4), torch.randn(4, 1))
    for bad, message in (("1", "is a LayerNorm"), ("2", "no layer '2'")):
        path = SidePath(AdapterBank([{"0": [pair], bad: [pair]}], torch.float32))
        with pytest.raises(ValueError, match=message):
            path.install(network)
        assert not any(module._forward_hooks for module in network.modules())


def test_grouped_convolutions_are_refused():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    path = SidePath(AdapterBank([{"0": [LowRank(torch.randn(1, 2, 3, 3), torch.randn(4, 1))]}], torch.float32))
    with pytest.raises(ValueError, match="grouped or transposed"):
        path.install(network)


def test_a_single_adapter_of_gate_one_touches_only_its_own_factors():
    layer = nn.Linear(8, 8)
    pairs = [LowRank(torch.randn(4, 8), torch.randn(8, 4)), LowRank(torch.full((4, 8), torch.nan), torch.randn(8, 4))]
    path = SidePath(AdapterBank([{"0": [pair]} for pair in pairs], torch.float32))
    network = nn.Sequential(layer)
    path.install(network)
    with torch.no_grad(), path.gated(((1.0, 0.0),)):
        assert (
            network(torch.randn(2, 8)).isfinite().all()
        )  # a gate of 0 would not hide the other adapter's NaN, because 0 * NaN is NaN
    path.remove()


def test_lower_precision_inputs_are_met_in_their_own_dtype():
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    pair = LowRank(torch.randn(2, 8), torch.randn(8, 2))
    path = SidePath(AdapterBank([{"0": [pair]}], torch.float32))
    network = nn.Sequential(layer)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    path.install(network)
    with torch.no_grad():
        with path.gated(((1.0,),)):
            uniform = network(x)
        with path.gated(((1.0,), (1.0,))):
            per_image = network(x)
        expected = layer(x).float() + x.float() @ pair.down.bfloat16().float().T @ pair.up.bfloat16().float().T
    path.remove()
    assert uniform.dtype == per_image.dtype == torch.bfloat16
    assert torch.allclose(uniform.float(), expected, rtol=0.05, atol=0.1)
    assert torch.allclose(per_image.float(), expected, rtol=0.05, atol=0.1)


def test_layers_that_were_not_called_are_named():
    network = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    pair = LowRank(torch.randn(1, 2), torch.randn(2, 1))
    path = SidePath(AdapterBank([{"used": [pair], "idle": [pair]}], torch.float32))
    path.install(network)
    network["used"](torch.zeros(1, 2))
    assert path.never_called() == ["idle"]
    path.remove()


@pytest.mark.parametrize(("down", "up"), [((0, 4), (4, 0)), ((2, 4), (4, 3)), ((2, 4), (4, 2, 1))])
def test_pairs_that_are_no_pairs_are_refused(down, up):
    with pytest.raises(ValueError, match="no low-rank pair"):
        LowRank(torch.zeros(down), torch.zeros(up))


def test_the_bank_counts_as_parameters_and_moves_as_a_module():
    bank = AdapterBank([{"a.b": [LowRank(torch.randn(2, 4), torch.randn(3, 2))]}], torch.float16)
    assert sum(p.numel() for p in bank.parameters()) == 2 * 4 + 2 * 3
    assert all(p.dtype == torch.float16 and not p.requires_grad for p in bank.parameters())
    moved = bank.to(torch.float64).stacks()["a.b"]
    assert moved.down.dtype == moved.up.dtype == torch.float64
    assert moved.up.shape == (2, 3)
    assert moved.spans == ((0, 0, 2),)


def test_gates_that_change_at_every_step_keep_no_factors():
    layer = nn.Linear(4, 4)
    pairs = [LowRank(torch.randn(2, 4), torch.randn(4, 2)) for _ in range(3)]
    path = SidePath(AdapterBank([{"0": [pair]} for pair in pairs], torch.float32))
    network = nn.Sequential(layer)
    path.install(network)
    prepared = path._layers["0"].prepared
    with torch.no_grad():
        for step in range(50):
            with path.gated(((step / 50, 1 - step / 50, 0.0),)):
                network(torch.zeros(1, 4))
            assert len(prepared) <= 4
        path.row = None
        for unit in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)) * 3:
            with path.gated((unit,)):
                network(torch.zeros(1, 4))
        assert set(prepared) >= {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}  # a blend's rows stay prepared
    path.remove()


class Wrapped(nn.Module):
    """A layer as peft wraps it for a LoRA: with the attributes of a Linear layer, also around a convolution."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.in_features, self.out_features = layer, layer.weight.shape[1], layer.weight.shape[0]

    def forward(self, x):
        return self.base_layer(x) + 1.0


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_a_wrapped_layer_is_changed_as_the_layer_itself(kind):
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.double)
    updates, network = [low_rank(layer, 2, 0)], nn.Module()
    network.layer = Wrapped(layer)
    assert layer_shape(network, "layer") == (layer.weight.shape[0], tuple(layer.weight.shape[1:]))
    path = SidePath(AdapterBank([{"layer": updates}], torch.double))
    path.install(network)
    with path.gated(((0.5,),)):
        result = network.layer(x)
    path.remove()
    torch.testing.assert_close(result, patched(layer, updates, (0.5,), x) + 1.0)
