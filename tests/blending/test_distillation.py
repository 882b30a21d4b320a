"""Fits of an adapter to a blend: never farther from the blend than their start, exact where the blend is a merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusion_blend.blending.adapters import AdapterBank
from diffusion_blend.blending.baking import join_pairs, reduce_rank
from diffusion_blend.blending.distillation import (
    FAILURES,
    Example,
    FitSettings,
    Fitted,
    Goal,
    fit,
    held_out_error,
)
from diffusion_blend.blending.gated_updates import GatedUpdates, trainable
from diffusion_blend.blending.side_path import SidePath
from diffusion_blend.blending.updates import BiasDifference, LowRank, ParameterDifference, ScaledOutput
from torch import Tensor, nn

LAYERS = {"0": (6, 12), "2": (12, 6)}


class World:
    """A small network, two adapters of rank 2, and calls of the blend with weights .3 and .7."""

    def __init__(self, nonlinearity: Callable[[], nn.Module], size: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.network = nn.Sequential(nn.Linear(6, 12), nonlinearity(), nn.Linear(12, 6)).requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.copy_(self.random(*parameter.shape) / parameter.shape[-1] ** 0.5)
        self.adapters: list[dict[str, list[Any]]] = [self.adapter(size), self.adapter(size)]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def adapter(self, size: float) -> dict[str, list[Any]]:
        return {
            name: [LowRank(self.random(2, taken) / taken**0.5, self.random(out, 2) * size)]
            for name, (taken, out) in LAYERS.items()
        }

    def predictions(self, x: Tensor) -> list[Tensor]:
        """Of both adapters and of the base, on the shipped side path."""
        path = SidePath(AdapterBank(self.adapters, torch.float32))
        path.install(self.network)
        try:
            found = []
            for gates in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
                with path.gated((gates,)):
                    found.append(self.network(x))
            return found
        finally:
            path.remove()

    def examples(self, count: int) -> list[Example]:
        made = []
        for _ in range(count):
            x = self.random(16, 6)
            first, second, base = self.predictions(x)
            made.append(Example(partial(self.network, x), (first, second), base))
        return made

    def soup(self, weights: tuple[float, ...], rank: int = 0) -> dict[str, LowRank]:
        joined = {
            name: join_pairs([(c, own[name][0]) for c, own in zip(weights, self.adapters, strict=True)])
            for name in LAYERS
        }
        return {name: reduce_rank(pair, rank)[0] if rank else pair for name, pair in joined.items()}


def distil(
    world: World, weights: tuple[float, float], rank: int = 0, rate: float = 3e-3
) -> tuple[Fitted, GatedUpdates, list[Example]]:
    updates, factors = trainable(world.soup(weights, rank))
    gated, goal = GatedUpdates(world.network, [updates]), Goal(weights)
    settings, held_out = FitSettings(iterations=150, batch=2, learning_rate=rate, checks=5), world.examples(4)
    found = fit(gated, factors, world.examples(8), held_out, lambda _: goal, [goal], settings, lambda *_: None)
    return found, gated, held_out


@pytest.mark.parametrize("rank", [0, 3])
def test_a_fit_comes_nearer_to_the_blend_than_the_soup_of_its_rank(rank: int) -> None:
    world = World(nn.Tanh)
    found, gated, _ = distil(world, (0.3, 0.7), rank)
    assert found.improved
    assert found.error < 0.7 * found.start
    assert found.error == min(error for _, error in found.curve)
    assert [number for number, _ in found.curve] == [30, 60, 90, 120, 150]
    fresh = world.examples(8)
    with gated.installed():
        assert held_out_error(gated, fresh, [Goal((0.3, 0.7))]) < 0.8 * found.start


def test_the_state_that_is_kept_is_the_best_and_never_worse_than_the_start() -> None:
    found, gated, held_out = distil(World(nn.Tanh), (0.3, 0.7), rate=3.0)  # far too high
    assert max(error for _, error in found.curve) > found.start
    assert found.error <= found.start
    with gated.installed():
        assert held_out_error(gated, held_out, [Goal((0.3, 0.7))]) == pytest.approx(found.error)


@pytest.mark.parametrize("size", [1.0, 0.1])
def test_a_learning_rate_that_is_too_high_for_the_adapters_is_lowered(size: float) -> None:
    """The first check is farther from the blend than the soup, the last nearer; without going back none is."""
    found, *_ = distil(World(nn.Tanh, size), (0.3, 0.7), rate=0.3)
    errors = [error for _, error in found.curve]
    assert errors[0] > found.start
    assert errors[-1] < found.start


def test_one_adapter_alone_is_that_adapter() -> None:
    found, *_ = distil(World(nn.Tanh), (1.0, 0.0))
    assert found.start < 1e-6
    assert found.error <= found.start


def test_of_a_linear_network_the_blend_of_one_layer_is_the_merge() -> None:
    """The blend is linear in the update of one layer of a linear network, so the merge has no error."""
    world = World(nn.Identity)
    world.adapters = [{"0": own["0"]} for own in world.adapters]
    pairs = {"0": join_pairs([(c, own["0"][0]) for c, own in zip((0.3, 0.7), world.adapters, strict=True)])}
    gated = GatedUpdates(world.network, [trainable(pairs)[0]])
    with gated.installed():
        assert held_out_error(gated, world.examples(3), [Goal((0.3, 0.7))]) < 1e-6


def test_the_updates_are_those_of_the_side_path() -> None:
    """Other kinds of update, too, with gates of any sign."""
    world = World(nn.Tanh)
    first = world.network[0]
    assert isinstance(first, nn.Linear)
    others = [BiasDifference(world.random(12)), ScaledOutput(world.random(12) / 4, first.bias)]
    world.adapters[0] = {**world.adapters[0], "0": [*world.adapters[0]["0"], *others]}
    x, gates = world.random(5, 6), (0.6, -0.3)
    path = SidePath(AdapterBank(world.adapters, torch.float32))
    path.install(world.network)
    with path.gated((gates,)):
        expected = world.network(x)
    path.remove()
    gated = GatedUpdates(world.network, world.adapters)
    with gated.installed(), gated.at(gates):
        torch.testing.assert_close(world.network(x), expected)
    torch.testing.assert_close(world.network(x), world.predictions(x)[2])


def test_the_gradient_is_that_of_finite_differences() -> None:
    world = World(nn.Tanh)
    world.network.double()
    pairs = {name: LowRank(p.down.double(), p.up.double()) for name, p in world.soup((0.3, 0.7)).items()}
    leaf = pairs["0"].down.clone().requires_grad_(True)
    x = world.random(3, 6).double()

    def loss(down: Tensor) -> Tensor:
        own = {"0": [LowRank(down, pairs["0"].up)], "2": [pairs["2"]]}
        gated = GatedUpdates(world.network, [own])
        with gated.installed(), gated.at((0.7,)):
            return world.network(x).square().sum()

    assert torch.autograd.gradcheck(loss, (leaf,))


def test_a_fit_without_finite_gradients_ends_with_a_message() -> None:
    world = World(nn.Tanh)
    examples = [Example(e.predict, tuple(p * float("nan") for p in e.predictions)) for e in world.examples(2)]
    updates, factors = trainable(world.soup((0.3, 0.7)))
    gated, goal, seen = GatedUpdates(world.network, [updates]), Goal((0.3, 0.7)), []
    with pytest.raises(ValueError, match="no finite gradient: lower the learning rate"):
        fit(
            *(gated, factors, examples, world.examples(1), lambda _: goal, [goal], FitSettings(iterations=99)),
            lambda number, _: seen.append(number),
        )
    assert len(seen) == FAILURES - 1
    assert not any(layer._forward_hooks for layer in world.network)


def test_a_blend_without_effect_and_a_bare_parameter_are_refused() -> None:
    world = World(nn.Tanh)
    base = world.examples(1)[0].base
    assert base is not None
    gated = GatedUpdates(world.network, [{}])
    with pytest.raises(ValueError, match="The blend is the base model"):
        held_out_error(gated, [Example(lambda: base, (base,), base)], [Goal(gates=())])
    with pytest.raises(ValueError, match="which is no layer's"):
        GatedUpdates(world.network, [{"0.weight": [ParameterDifference(torch.zeros(12, 6))]}])
