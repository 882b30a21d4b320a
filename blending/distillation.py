"""Fits adapters to a blend's own predictions on its own trajectories, without a reward and without pictures.

The blend ``D = sum_k mix[k] D_k`` takes several calls. A fitted adapter of low rank comes near to it in one call. It starts as
the soup of the same rank, and the state with the smallest error on held-out calls is kept, so it is never farther from the
blend than the soup on those calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layer_calls import LayerCall, bind_linear, scaled_sum
from .layers import Layer, find_layer, layer_of
from .updates import LowRank, ParameterDifference, Update

GRADIENT_SCALE = 1024.0
"""Factor on the loss, so that gradients inside a network of half precision do not vanish. Adam's step does not depend on it."""

FAILURES = 10
"""Optimizer steps without finite gradients, one after the other, that end a fit."""

Updates = Mapping[str, Sequence[Update]]
"""Layer name -> updates of it."""


@dataclass(frozen=True)
class Example:
    """One call of the network on a trajectory.

    Args:
        predict: repeats the call with the updates that are installed, and returns the prediction float[N, ...].
        predictions: what the models to be mixed predict there, each float[N, ...].
        base: what the base predicts there; only held-out examples need it.
        scale: factor on differences of predictions, for instance 1 / sigma where the network predicts x0.
    """

    predict: Callable[[], Tensor]
    predictions: tuple[Tensor, ...]
    base: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Goal:
    """A preference to be fitted: with these gates the network shall predict ``sum_k mix[k] predictions[k]``.

    Args:
        mix: one coefficient for each of an example's predictions.
        gates: one for each installed adapter.
    """

    mix: tuple[float, ...] = (1.0,)
    gates: tuple[float, ...] = (1.0,)

    def target(self, example: Example) -> Tensor:
        """The blend's prediction, float32[N, ...]."""
        parts = [c * part.float() for c, part in zip(self.mix, example.predictions, strict=True)]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class FitSettings:
    """How a fit is made.

    Args:
        iterations: optimizer steps.
        batch: calls that are repeated for each step.
        learning_rate: of Adam at the beginning; it falls to 0 as a cosine.
        seed: of the order of the calls, and of the goals.
        checks: how often the held-out error is measured, evenly over the iterations.
    """

    iterations: int = 400
    batch: int = 4
    learning_rate: float = 3e-4
    seed: int = 0
    checks: int = 8


@dataclass
class Fitted:
    """The result of a fit.

    Attributes:
        start: held-out error at the start, as a share of the blend's effect; see `held_out_error`.
        error: of the state that was kept.
        curve: iteration and error at every check.
    """

    start: float
    error: float
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether the fit came nearer to the blend than its start."""
        return self.error < self.start


class GatedUpdates:
    """Updates beside a network's layers with a gradient to their tensors, slower than `side_path.SidePath`.

    Args:
        network: the network.
        adapters: n adapters.

    Raises:
        ValueError: a layer is not there, or an update exchanges a parameter.
    """

    def __init__(self, network: nn.Module, adapters: Sequence[Updates]) -> None:
        self.gates: tuple[float, ...] = (0.0,) * len(adapters)
        self._layers: dict[str, tuple[nn.Module, list[tuple[int, Update]]]] = {}
        for index, adapter in enumerate(adapters):
            for name, updates in adapter.items():
                if any(isinstance(update, ParameterDifference) for update in updates):
                    raise ValueError(
                        f"An adapter changes the parameter {name}, which is no layer's: it cannot be fitted."
                    )
                own = self._layers.setdefault(name, (find_layer(network, name), []))[1]
                own += [(index, update) for update in updates]

    @property
    def modules(self) -> list[nn.Module]:
        """The layers with updates."""
        return [module for module, _ in self._layers.values()]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hook the layers inside the block."""
        handles: list[Any] = []
        try:
            for name, (module, updates) in self._layers.items():
                hook = partial(self._hook, name, layer_of(module, name), updates)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, gates: tuple[float, ...]) -> Iterator[None]:
        """Set the gates inside the block."""
        before, self.gates = self.gates, gates
        try:
            yield
        finally:
            self.gates = before

    def _hook(
        self,
        name: str,
        layer: Layer,
        updates: Sequence[tuple[int, Update]],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        used = [(self.gates[index], update) for index, update in updates if self.gates[index] != 0]
        if not used:
            return None
        linear = hasattr(module, "in_features") and not hasattr(module, "kernel_size")
        call = bind_linear(name, args, kwargs) if linear else LayerCall(args[0] if args else kwargs["input"])
        own = module.forward(call.x) if call.fused else output
        return scaled_sum(output, _change(used, layer, call.x, own), call.scale)


def _change(used: Sequence[tuple[float, Update]], layer: Layer, x: Tensor, output: Tensor) -> Tensor:
    like = x if x.is_floating_point() else output
    return sum(gate * update.like(like).delta(layer, x, output) for gate, update in used).to(output.dtype)  # pyright: ignore


def trainable(pairs: Mapping[str, LowRank]) -> tuple[dict[str, list[Update]], list[Tensor]]:
    """Return copies of low-rank updates with gradient, and their factors.

    Args:
        pairs: by layer.
    """
    new = {
        name: LowRank(pair.down.float().clone().requires_grad_(True), pair.up.float().clone().requires_grad_(True))
        for name, pair in pairs.items()
    }
    return {name: [pair] for name, pair in new.items()}, [part for pair in new.values() for part in pair.tensors()]


def held_out_error(updates: GatedUpdates, examples: Sequence[Example], goals: Sequence[Goal]) -> float:
    """Compute how far installed updates are from the blend, as a share of the blend's effect.

    ``sqrt(sum ||D - D_blend||^2 / sum ||D_blend - D_base||^2)``, over all examples and goals.

    Args:
        updates: installed.
        examples: with the base's predictions.
        goals: at least one.

    Raises:
        ValueError: the blend is the base, so it has no effect to compare with.
    """
    missed = effect = 0.0
    with torch.no_grad():
        for example in examples:
            assert example.base is not None
            base = example.base.float()
            for goal in goals:
                target = goal.target(example)
                with updates.at(goal.gates):
                    found = example.predict().float()
                missed += example.scale**2 * float((found - target.to(found)).square().sum())
                effect += example.scale**2 * float((target - base).square().sum())
    if effect == 0:
        raise ValueError("The blend is the base model at every step: there is nothing to fit.")
    return math.sqrt(missed / effect)


def fit(
    updates: GatedUpdates,
    factors: Sequence[Tensor],
    examples: Sequence[Example],
    held_out: Sequence[Example],
    goals: Callable[[torch.Generator], Goal],
    checked: Sequence[Goal],
    settings: FitSettings,
    advance: Callable[[int, float | None], None],
) -> Fitted:
    """Fit factors so that the network predicts the blend at each goal. They end as the best state on the held-out examples.

    Args:
        updates: all updates of the network, not installed; some of them are made of the factors.
        factors: leaves with gradient.
        examples: to fit to.
        held_out: to measure the error on.
        goals: draws the goal of an optimizer step.
        checked: the goals at which the held-out error is measured.
        settings: see `FitSettings`.
        advance: called after every iteration with its number and, where it was measured, the error. It may raise to stop.

    Raises:
        ValueError: the gradients are not finite again and again.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(factors, settings.learning_rate)
    every, failures = max(settings.iterations // settings.checks, 1), 0
    with updates.installed():
        start = held_out_error(updates, held_out, checked)
        found, best = Fitted(start, start), [factor.detach().clone() for factor in factors]
        for number in range(1, settings.iterations + 1):
            share = (number - 1) / settings.iterations
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(math.pi * share)) / 2
            drawn = torch.randint(len(examples), (settings.batch,), generator=generator).tolist()
            finite = _step(optimizer, factors, updates, [(examples[i], goals(generator)) for i in drawn])
            failures = 0 if finite else failures + 1
            _check_failures(failures, settings)
            error = None
            if number % every == 0 or number == settings.iterations:
                error = held_out_error(updates, held_out, checked)
                found.curve.append((number, error))
                if error < found.error:
                    found.error, best = error, [factor.detach().clone() for factor in factors]
            advance(number, error)
    with torch.no_grad():
        for factor, kept in zip(factors, best, strict=True):
            factor.copy_(kept)
    return found


def _check_failures(failures: int, settings: FitSettings) -> None:
    if failures == FAILURES:
        raise ValueError(
            f"{FAILURES} steps of the fit had no finite gradient: lower the learning rate, which is "
            f"{settings.learning_rate:g}, or load the base in float32 or bfloat16."
        )


def _step(
    optimizer: torch.optim.Optimizer,
    factors: Sequence[Tensor],
    updates: GatedUpdates,
    batch: Sequence[tuple[Example, Goal]],
) -> bool:
    """One optimizer step, unless a gradient is not finite."""
    optimizer.zero_grad()
    for example, goal in batch:
        with torch.enable_grad(), updates.at(goal.gates):
            found = example.predict().float()
            missed = (found - goal.target(example).to(found)) * example.scale
            (missed.square().mean() * GRADIENT_SCALE / len(batch)).backward()
    if not all(factor.grad is None or bool(factor.grad.isfinite().all()) for factor in factors):
        return False
    optimizer.step()
    return True
