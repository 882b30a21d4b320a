"""From a plan to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from .plans import Gates, Plan
from .schedules import Coefficient


def combine(denoised: Iterable[Tensor], mix: Sequence[Coefficient]) -> Tensor:
    """Sum a plan's evaluations into one prediction.

    ``D = sum_k mix[k] * denoised[k]`` (Diffusion Blend, arXiv 2505.18547, eq. 9 and 10).

    Args:
        denoised: x0 predictions, K times float[N, C, ...], latent units. A generator is consumed one prediction at a time.
        mix: coefficients, [K], any sign. Each is a number, or float[1 | B, 1, H, W] with one number per latent pixel. The
            latter are for predictions float[N, C, H, W] or float[N, C, T, H, W] of N = chunks * B inputs, the images of a
            chunk together.

    Returns:
        Blended x0 prediction, float[N, C, ...], dtype of ``denoised``. A single prediction of coefficient 1 is returned
        unchanged.

    Raises:
        ValueError: the number of coefficients differs from the number of evaluations, or both are 0.
    """
    total: Tensor | None = None
    for prediction, coefficient in zip(denoised, mix, strict=True):
        if isinstance(coefficient, Tensor):
            factor = _broadcast_to(coefficient, prediction)
            total = prediction * factor if total is None else total.addcmul_(prediction, factor)
        elif total is not None:
            total.add_(prediction, alpha=coefficient)
        elif len(mix) == 1 and coefficient == 1:
            total = prediction
        else:
            total = prediction * coefficient
    if total is None:
        raise ValueError("A plan needs at least one evaluation.")
    return total


def _broadcast_to(coefficient: Tensor, prediction: Tensor) -> Tensor:
    if prediction.ndim == 5:
        coefficient = coefficient.unsqueeze(2)  # [B, 1, H, W] -> [B, 1, 1, H, W], the same in every frame
    if len(coefficient) > 1:
        coefficient = coefficient.repeat(len(prediction) // len(coefficient), *[1] * (coefficient.ndim - 1))
    return coefficient.to(prediction)


def evaluate(plan: Plan, predict: Callable[[tuple[Gates, ...]], Tensor]) -> Tensor:
    """Run a plan, one call after the other.

    Args:
        plan: K rows of gates and their mix.
        predict: one model call: row of gates (of one image, or of each image of the batch) -> x0 prediction,
            float[B, ...].

    Returns:
        ``sum_k mix[k] * predict(gates[k])``, float[B, ...].

    Raises:
        ValueError: the plan extrapolates a residual of an earlier step.
    """
    if plan.extrapolation is not None:
        raise ValueError("This plan needs the residual of an earlier step, and here each step is evaluated by itself.")
    return combine((predict(row) for row in plan.gates), plan.mix)
