"""The idea: every method is a plan of gates and mix.

A low-rank side path makes a layer's output ``y = W x + sum_i g_i B_i A_i x``, with a gate ``g_i`` per adapter and image.
One model call is one row of gates. A plan is a few rows, and the coefficients that sum their predictions::

    D = sum_k mix[k] * D(gates[k])

blend (DB-MPA, DB-KLA): a unit row per adapter and the zero row for the base; the mix is the affine coefficients.
stochastic (DB-MPA-LS): one row, in which every image has a unit row drawn for this step; the mix is 1.
soup (rewarded soup):   one row, the coefficients themselves; the mix is 1.
stacked:                the row of the soup, for adapters that were trained together for it.
early:                  the blend in the first steps, which decide most of the image. Later steps are the soup plus the
                        extrapolated residual of the last blended steps (``residual_mix``, ``extrapolation``).

No other code needs to know which method runs. The coefficients may be fixed, move over the run or differ within the image
(`schedules`). Then the plans do so, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload

import torch
from torch import Tensor

from .draws import DRAWS, draw, round_dependently
from .schedules import Coefficient, Coefficients, CoefficientSchedule, coefficients_at, is_uniform
from .step_info import StepInfo

Gates = tuple[float, ...]
"""One gate per adapter, float[m]."""

# A smaller coefficient is rounding from the division of the weights by their sum, and needs no evaluation.
NEGLIGIBLE = 1e-12

EARLY_SHARE = 0.15
"""The default share of a run's steps that `EarlyBlend` blends: at most 1.5 calls a step for four adapters and 20, 30 or 50
steps."""


@dataclass(frozen=True)
class Extrapolation:
    """How the residuals of two steps, ``r_0`` at ``sigma_0`` and then ``r_1`` at ``sigma_1``, are extrapolated.

    ``(sigma / sigma_1)^power [r_1 + ahead (r_1 - (sigma_1 / sigma_0)^power r_0)]``: the residual decays as ``sigma^power``, and a
    share of its last change is repeated. Without r_0 the bracket is r_1.

    Args:
        power: of the decay.
        ahead: the share of the last change that is repeated, 0 for none.
    """

    power: float
    ahead: float


# The residual of the blend falls with sigma^1.5 in the noise prediction, which is sigma^2.5 in x0 (docs/speed.md).
RESIDUAL_EXTRAPOLATION = Extrapolation(power=2.5, ahead=0.5)


@dataclass(frozen=True)
class Plan:
    """The calls of one denoising step.

    Args:
        gates: [K] rows of [B] images of float[m]; a row of one image holds for the whole batch.
        mix: coefficients of the rows' predictions, [K], any sign, sum 1: numbers, or float64[1 | B, 1, H, W] where they
            differ within the image.
        residual_mix: float[K]; ``sum_k residual_mix[k] D(gates[k])`` is cached as this step's residual. None caches nothing.
        extrapolation: the law by which the cached residual is extrapolated to this step and added. None adds nothing.
        without_residual: the plan of a call for which no residual is cached. None leaves its prediction as it is.
    """

    gates: tuple[tuple[Gates, ...], ...]
    mix: Coefficients
    residual_mix: tuple[float, ...] | None = None
    extrapolation: Extrapolation | None = None
    without_residual: Plan | None = None


class Planner(Protocol):
    """Makes the plan of a step."""

    def __call__(self, step: StepInfo) -> Plan: ...


@dataclass(frozen=True)
class Blend:
    """DB-MPA and DB-KLA: one evaluation per adapter in use, and one of the base unless the coefficients sum to 1.

    ``D = (1 - sum_i c_i) D_0 + sum_i c_i D_i`` (Diffusion Blend, arXiv 2505.18547, eq. 9 and 10).

    Args:
        coefficients: c, [m], any sign, or a schedule; numbers, or one for each latent pixel.
    """

    coefficients: Coefficients | CoefficientSchedule

    def __call__(self, step: StepInfo) -> Plan:
        coefficients = coefficients_at(self.coefficients, step)
        adapters = len(coefficients)
        rows = [
            (unit_row(i, adapters), c)
            for i, c in enumerate((*coefficients, base_coefficient(coefficients)))
            if is_significant(c)
        ]
        return Plan(tuple((row,) for row, _ in rows), tuple(c for _, c in rows))


@dataclass(frozen=True)
class Soup:
    """Rewarded soup: one evaluation with the adapters' weight updates averaged, ``W + sum_i c_i B_i A_i``.

    The correct average of the products, not of the factors (method of Rame et al. 2023, arXiv 2306.04488, on LoRA).

    Args:
        coefficients: c, float[m], any sign, or a schedule of them.

    Raises:
        ValueError: the coefficients differ within the image.
    """

    coefficients: Coefficients | CoefficientSchedule

    def __post_init__(self) -> None:
        _require_uniform(self.coefficients, "A soup averages the weights of the whole network")

    def __call__(self, step: StepInfo) -> Plan:
        return Plan(((_numbers(coefficients_at(self.coefficients, step)),),), (1.0,))


@dataclass(frozen=True)
class EarlyBlend:
    """The blend in the first steps, then the soup plus the blend's extrapolated residual: about 1.5 calls a step.

    The first ``n = ceil(share * count)`` steps are blended, except the last but one if n is 4 or more. The last blended steps
    also evaluate the soup and cache the residual ``r = D_blend - D_soup``. Every other step evaluates only the soup and adds
    the residual, extrapolated by `RESIDUAL_EXTRAPOLATION`. A conditioning, or a part of the latent, that is new in such a step
    is blended once.

    A step changes the latent by ``(sigma_next - sigma) (x - D) / sigma``. An error of the noise prediction therefore counts by
    the fall of sigma, and the first steps of the usual schedules fall farthest. The residual differs from step to step at
    first; later it changes little in direction and shrinks, in the noise prediction by about ``sigma^1.5`` (measured,
    docs/speed.md). The remaining error is measured, not bounded. Share 0 is the soup, share 1 the blend.

    Args:
        coefficients: c, float[m], any sign, or a schedule of them.
        share: of the run's steps that are early, in [0, 1]; a part of a step counts as a whole step.

    Raises:
        ValueError: the share is outside [0, 1], or the coefficients differ within the image.
    """

    coefficients: Coefficients | CoefficientSchedule
    share: float = EARLY_SHARE

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"early_share is {self.share:g}: it is a share of the run's steps, from 0 to 1.")
        _require_uniform(self.coefficients, "After the first steps a soup averages the weights of the whole network")

    def __call__(self, step: StepInfo) -> Plan:
        blend, soup = Blend(self.coefficients)(step), Soup(self.coefficients)(step)
        # Rounding must not add a step: 0.07 * 100 is slightly more than 7.
        early = math.ceil(self.share * step.count - NEGLIGIBLE * step.count)
        if blend.gates == soup.gates or early == 0:  # for one adapter alone both are the same
            return soup
        following = min(step.index + 1, step.count - 1)
        if early == step.count or (_is_blended(step.index, early) and _is_blended(following, early)):
            return blend
        mix = tuple(map(float, _numbers(blend.mix)))
        both = Plan((*blend.gates, *soup.gates), (*mix, 0.0), residual_mix=(*mix, -1.0))
        if _is_blended(step.index, early):
            return both
        return replace(soup, extrapolation=RESIDUAL_EXTRAPOLATION, without_residual=both)


def _is_blended(index: int, early: int) -> bool:
    return index < early and not (early >= 4 and index == early - 2)


@dataclass(frozen=True)
class Stochastic:
    """DB-MPA-LS: each image's step uses one adapter, drawn with probability c_i, the base with 1 - sum c.

    Diffusion Blend (arXiv 2505.18547), Proposition 2. A draw depends on the run's seed, the step and the image's index
    only: all calls of a step, and the conditional and unconditional branch, share it. Where it is unknown which image is
    which, all images share the draw of image 0.

    Args:
        coefficients: c, float[m], each at least 0, sum at most 1, or a schedule of them.
        draws: "independent" over steps, or "stratified": over the run every adapter's count differs from the sum of its
            ``c_i`` over the steps by less than 1, in random order.

    Raises:
        ValueError: a coefficient (the base's included) is negative or differs within the image, or draws is another word.
    """

    coefficients: Coefficients | CoefficientSchedule
    draws: str = "stratified"

    def __post_init__(self) -> None:
        _require_uniform(self.coefficients, "One adapter is drawn for the whole image")
        if self.draws not in DRAWS:
            raise ValueError(f"draws is {self.draws!r}: choose one of {', '.join(DRAWS)}.")
        for index in (0, 1):  # the first and the last step, so that errors are found before the model is loaded
            self.probabilities(StepInfo(index, 2))

    def __call__(self, step: StepInfo) -> Plan:
        probabilities = self.probabilities(step)
        images = (0,) if step.images is None else step.images
        if callable(self.coefficients) and self.draws == "stratified":
            run = tuple(self.probabilities(StepInfo(index, step.count)) for index in range(step.count))
            chosen = [round_dependently(run, step.seed, image)[step.index] for image in images]
        else:
            chosen = [draw(self.draws, probabilities, step.seed, step.index, step.count, image) for image in images]
        if len(set(chosen)) == 1:
            chosen = chosen[:1]  # with one row for the whole batch a layer evaluates one adapter only
        return Plan((tuple(unit_row(i, len(probabilities) - 1) for i in chosen),), (1.0,))

    def probabilities(self, step: StepInfo) -> Gates:
        """Return the probabilities of the adapters at a step and, last, of the base model, float[m + 1]."""
        coefficients = _numbers(coefficients_at(self.coefficients, step))
        base = base_coefficient(coefficients)
        if min((*coefficients, base)) < 0:
            raise ValueError(
                f"Stochastic sampling draws adapters with probabilities {list(coefficients)} and the base model with "
                f"{base:g}: a negative one cannot be drawn. Set kl_scale between 0 and 1, or use the method 'blend'."
            )
        return (*coefficients, base)


@overload
def base_coefficient(coefficients: Sequence[float]) -> float: ...
@overload
def base_coefficient(coefficients: Sequence[Coefficient]) -> Coefficient: ...
def base_coefficient(coefficients: Sequence[Coefficient]) -> Coefficient:
    """Return the base model's share ``1 - sum_i c_i``, exactly 0 where only rounding is left."""
    if any(isinstance(c, Tensor) for c in coefficients):
        shares = 1.0 - sum(coefficients)
        return torch.where(torch.as_tensor(shares).abs() < NEGLIGIBLE, 0.0, shares)
    base = 1.0 - math.fsum(_numbers(coefficients))
    return 0.0 if abs(base) < NEGLIGIBLE else base


def is_significant(coefficient: Coefficient) -> bool:
    """Return whether a coefficient is more than rounding anywhere in the image."""
    largest = coefficient.abs().max() if isinstance(coefficient, Tensor) else abs(coefficient)
    return bool(largest > NEGLIGIBLE)


def _numbers(coefficients: Sequence[Coefficient]) -> Gates:
    return tuple(float(c) for c in coefficients)


def _require_uniform(coefficients: Coefficients | CoefficientSchedule, because: str) -> None:
    if not is_uniform(coefficients):
        raise ValueError(
            f"{because}, so it cannot have another preference in a region. Use the method 'blend' (Blended KSampler), or "
            "one preference for the whole image."
        )


def make_planner(
    method: str,
    coefficients: Coefficients | CoefficientSchedule,
    draws: str = "stratified",
    early_share: float = EARLY_SHARE,
) -> Planner:
    """Return the planner of a method.

    Args:
        method: one of `METHODS`.
        coefficients: c, [m], fixed or a schedule.
        draws: see `Stochastic`; the other methods ignore it.
        early_share: see `EarlyBlend`; the other methods ignore it.

    Raises:
        ValueError: another name, or coefficients that the method cannot take.
    """
    if method == "blend":
        return Blend(coefficients)
    if method == "stochastic":
        return Stochastic(coefficients, draws)
    if method in ("soup", "stacked"):  # what differs is the adapters
        return Soup(coefficients)
    if method == "early":
        return EarlyBlend(coefficients, early_share)
    raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}.")


METHODS = ("blend", "stochastic", "soup", "early", "stacked")


def unit_row(index: int, adapters: int) -> Gates:
    """Return the row with a 1 at the index. An index past the last adapter gives the base model's row of zeros."""
    return tuple(1.0 if i == index else 0.0 for i in range(adapters))
