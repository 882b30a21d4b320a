"""The closed-form step of MSDDA: fuse several Gaussian reverse steps into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .plans import NEGLIGIBLE, Gates, base_coefficient, unit_row


@dataclass(frozen=True)
class StepFactor:
    """One Gaussian of the product that makes an MSDDA step.

    Args:
        gates: the row of gates whose prediction gives the mean, float[m]; all 0 for the base model.
        coefficient: the power to which it is raised, any sign.
        eta: noise scale of the step, above 0.
    """

    gates: Gates
    coefficient: float
    eta: float


def step_factors(
    coefficients: Sequence[float], etas: Sequence[float], shares: Sequence[float] | None = None, base_eta: float = 1.0
) -> tuple[StepFactor, ...]:
    """Return the Gaussians of one MSDDA step: one per adapter in use, and the base model at the noise of each adapter.

    MSDDA's optimum for preference w is ``prod_i pi_i^w_i`` with ``pi_i = N(mu_i, s_i^2)`` (arXiv 2604.14379). Adapter i was
    aligned against the base's own step at the same noise, ``pi_i ~ pi_0i exp(r_i / alpha)`` with
    ``pi_0i = N(mu_0(eta_i), s_i^2)``. At KL scale lambda its optimum is ``pi_0i exp(lambda r_i / alpha)``, which is
    ``pi_0i^(1 - lambda) pi_i^lambda``. The product over the adapters is therefore
    ``prod_i pi_i^(lambda w_i) pi_0i^((1 - lambda) w_i)``: the base model takes part once per adapter, at that adapter's
    noise. Its share of the precision is the mean of the adapters' precisions, not a precision of its own. Equal etas give
    the plain blend at every KL scale. One adapter alone keeps its own noise at every KL scale.

    Args:
        coefficients: c, float[m], any sign; ``lambda w`` for a fixed preference.
        etas: noise scale of every adapter, float[m], above 0.
        shares: w, float[m], sum 1: how the base model is divided among the adapters' noises. None takes ``c / sum c``.
        base_eta: noise scale of the base model where the coefficients sum to 0 and no shares are given.

    Returns:
        The factors; their coefficients sum to 1. Factors of the base with equal eta are joined.

    Raises:
        ValueError: the lengths differ, or an eta is not a finite number above 0.
    """
    for number, eta in enumerate(etas, start=1):
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(f"eta_{number} is {eta}: it must be a finite number above 0.")
    if len(etas) != len(coefficients):
        raise ValueError(f"{len(etas)} etas for {len(coefficients)} adapters: give every adapter one.")
    adapters = len(coefficients)
    factors = [
        StepFactor(unit_row(i, adapters), c, eta)
        for i, (c, eta) in enumerate(zip(coefficients, etas, strict=True))
        if abs(c) > NEGLIGIBLE
    ]
    base = base_coefficient(coefficients)
    if base == 0:
        return tuple(factors)
    by_eta: dict[float, float] = {}
    for eta, share in _base_shares(coefficients, etas, shares, base_eta):
        by_eta[eta] = by_eta.get(eta, 0.0) + share
    zero = (0.0,) * adapters
    base_factors = [StepFactor(zero, base * share, eta) for eta, share in by_eta.items() if abs(share) > NEGLIGIBLE]
    if len(base_factors) == 1:  # exactly the base's coefficient, without the rounding of the shares
        base_factors = [StepFactor(zero, base, base_factors[0].eta)]
    return (*factors, *base_factors)


def _base_shares(
    coefficients: Sequence[float], etas: Sequence[float], shares: Sequence[float] | None, base_eta: float
) -> list[tuple[float, float]]:
    """Return pairs (eta, share) of the base model, with shares of sum 1."""
    if shares is None:
        total = math.fsum(coefficients)
        if abs(total) <= NEGLIGIBLE:
            return [(base_eta, 1.0)]
        shares = [c / total for c in coefficients]
    return list(zip(etas, shares, strict=True))


def fuse_gaussians(
    means: Sequence[Tensor], deviations: Sequence[float], coefficients: Sequence[float]
) -> tuple[Tensor, float]:
    """Compute the normalised weighted product of isotropic Gaussians, ``prod_i N(mu_i, s_i^2)^c_i``.

    Precision ``P = sum_i c_i / s_i^2``, mean ``(sum_i c_i mu_i / s_i^2) / P``, deviation ``P^-1/2``. This is the step-level
    optimum of MSDDA (arXiv 2604.14379) for preference c over single-objective reverse steps ``N(mu_i, s_i^2)``. The base
    model takes part by further factors (`step_factors`). With equal deviations the mean is ``sum_i c_i mu_i``,
    which is Diffusion Blend (arXiv 2505.18547, eq. 9).

    Args:
        means: mu, n times float[B, ...].
        deviations: s, float[n], above 0; only their ratios matter to the mean.
        coefficients: c, float[n], any sign, sum 1.

    Returns:
        Mean, float[B, ...], and standard deviation.

    Raises:
        ValueError: the lengths differ, a deviation is not above 0, or the precision is not above 0 (negative
            coefficients of low-noise adapters), so that the product is no distribution.
    """
    if not len(means) == len(deviations) == len(coefficients) > 0:
        raise ValueError(
            f"{len(means)} means, {len(deviations)} deviations, {len(coefficients)} coefficients: give as many of each."
        )
    if not all(math.isfinite(s) and s > 0 for s in deviations):
        raise ValueError(f"The steps' standard deviations are {list(deviations)}: each must be above 0.")
    shares = [c / s**2 for c, s in zip(coefficients, deviations, strict=True)]
    precision = math.fsum(shares)
    if precision <= 0:
        raise ValueError(
            f"The product of the steps has precision {precision:g} (coefficients {list(coefficients)}, deviations "
            f"{list(deviations)}): it is no distribution. Bring kl_scale closer to 1 or the etas closer together."
        )
    mean = means[0] * (shares[0] / precision)
    for mu, share in zip(means[1:], shares[1:], strict=True):
        mean.add_(mu, alpha=share / precision)
    return mean, precision**-0.5
