"""Compares a prediction from a call with several rows of gates with the same prediction from a plain call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-5
"""Float32 predictions of one input in two batches differ by less than this share of the network's output."""

COARSE = 0.05
"""A larger share is more than the rounding of half precision: the network's images depend on each other."""

LEEWAY = 2.0
"""The factor by which two roundings of the same size may differ."""


@dataclass(frozen=True)
class Comparison:
    """Two predictions of the same inputs with the same gates.

    Args:
        mixed: from a call in which other rows have other gates, float[n, ...].
        plain: from a call in which all rows have the same gates.
        x: the noisy latents, float[n, ...].
    """

    mixed: Tensor
    plain: Tensor
    x: Tensor


def agrees(pair: Comparison, uniform: Callable[[], Tensor]) -> bool:
    """Return whether two predictions differ by no more than rounding.

    In half precision the same input gives slightly different numbers in another batch. Their size is measured by a call of the
    mixed call's shape in which all rows have the same gates.

    Args:
        pair: the predictions.
        uniform: makes that prediction, float[n, ...]. It is called only if the two differ by more than float32's rounding.
    """
    scale = _scale(pair.plain, pair.x)
    if not scale < float("inf"):
        return True  # the plain prediction is not finite, so there is nothing to compare with
    error = _norm(pair.mixed - pair.plain)
    if error <= ROUNDING * scale:
        return True
    rounding = _norm(uniform() - pair.plain)
    return error <= LEEWAY * rounding and rounding <= COARSE * scale


def shows_a_difference(other: Tensor, plain: Tensor, x: Tensor) -> bool:
    """Return whether two predictions with different gates differ, so that a mistaken gate would have been seen.

    Args:
        other: with other gates, float[n, ...].
        plain: float[n, ...].
        x: the noisy latents, float[n, ...].
    """
    return _norm(other - plain) > 10 * ROUNDING * _scale(plain, x)


def _scale(prediction: Tensor, x: Tensor) -> float:
    """The size of the network's output: the x0 prediction itself, or the noise that was removed from x."""
    size = _norm(prediction)
    return max(size, _norm(x - prediction)) if x.shape == prediction.shape else size


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
