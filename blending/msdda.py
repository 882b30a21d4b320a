"""The closed-form step of MSDDA: fuse several Gaussian reverse steps into one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def fuse_gaussians(
    means: Sequence[Tensor], deviations: Sequence[float], coefficients: Sequence[float]
) -> tuple[Tensor, float]:
    """The normalised weighted product of isotropic Gaussians, ``prod_i N(mu_i, s_i^2)^c_i``.

    Precision ``P = sum_i c_i / s_i^2``, mean ``(sum_i c_i mu_i / s_i^2) / P``, deviation ``P^-1/2``: the step-level
    optimum of MSDDA (arXiv 2604.14379) for preference c over single-objective reverse steps ``N(mu_i, s_i^2)``. The base
    model is one more factor, with coefficient ``1 - sum c``. With equal deviations the mean is ``sum_i c_i mu_i``,
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
