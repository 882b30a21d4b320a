"""Fits adapters to a blend's own predictions on its own trajectories, without a reward and without pictures.

The blend ``D = sum_k mix[k] D_k`` takes several calls. A fitted adapter of low rank comes near to it in one call. It starts as
the soup of the same rank, and the state with the smallest error on held-out calls is kept, so it is never farther from the
blend than the soup on those calls. A learning rate that is too high for the adapters is lowered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gated_updates import GatedUpdates

GRADIENT_SCALE = 1024.0
"""Factor on the loss, so that gradients inside a network of half precision do not vanish. Adam's step does not depend on it."""

FAILURES = 10
"""Optimizer steps without finite gradients, one after the other, that end a fit."""

BACK_OFF = 0.3
"""Factor on the learning rate after a check that is farther from the blend than the start."""


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
        learning_rate: of Adam at the beginning. It falls to 0 as a cosine. See also `BACK_OFF`.
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

    A state that a check finds farther from the blend than the start is given up: the fit goes on from the best one, with a fresh
    optimizer and a lower learning rate. How high it may be depends on the size of the adapters' factors.

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
    optimizer, highest = torch.optim.Adam(factors), settings.learning_rate
    every, failures = max(settings.iterations // settings.checks, 1), 0
    with updates.installed():
        start = held_out_error(updates, held_out, checked)
        found, best = Fitted(start, start), [factor.detach().clone() for factor in factors]
        for number in range(1, settings.iterations + 1):
            share = (number - 1) / settings.iterations
            optimizer.param_groups[0]["lr"] = highest * (1 + math.cos(math.pi * share)) / 2
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
                elif not error <= start:
                    _restore(factors, best)
                    optimizer, highest = torch.optim.Adam(factors), BACK_OFF * highest
            advance(number, error)
    _restore(factors, best)
    return found


def _restore(factors: Sequence[Tensor], state: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for factor, saved in zip(factors, state, strict=True):
            factor.copy_(saved)


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
