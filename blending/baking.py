"""Baking: the gated sum of several adapters' updates as one update, exact or of a chosen rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .updates import (
    BiasDifference,
    Difference,
    HadamardProduct,
    KroneckerProduct,
    LowRank,
    ParameterDifference,
    RotatedOutput,
    ScaledOutput,
    Slice,
    Update,
)


def join_pairs(pairs: Sequence[tuple[float, LowRank]]) -> LowRank:
    """Return ``sum_i c_i up_i @ down_i`` as one pair, exactly: the ranks are joined and the coefficients are in ``up``.

    Args:
        pairs: coefficients and low-rank updates of the same layer, at least one.
    """
    down = torch.cat([pair.down for _, pair in pairs])
    return LowRank(down, torch.cat([pair.up * coefficient for coefficient, pair in pairs], dim=1))


def dense_difference(update: Update, weight: Callable[[], Tensor]) -> Tensor:
    """Return the difference of the weight (or bias, or parameter) that an update stands for.

    Args:
        update: of one layer.
        weight: gives the layer's own weight; called only for the kinds that multiply it.

    Raises:
        TypeError: the kind is unknown.
    """
    if isinstance(update, LowRank):
        return (update.up @ update.down.flatten(1)).view(-1, *update.down.shape[1:])
    if isinstance(update, Difference):
        return update.weight
    if isinstance(update, BiasDifference):
        return update.bias
    if isinstance(update, ParameterDifference):
        return update.value
    if isinstance(update, HadamardProduct):
        product = (update.up1 @ update.down1.flatten(1)) * (update.up2 @ update.down2.flatten(1))
        return product.view(-1, *update.down1.shape[1:])
    if isinstance(update, KroneckerProduct):
        right = update.right if update.up is None else torch.einsum("cr,r...->c...", update.up, update.right)
        return torch.kron(update.left.view(*update.left.shape, *[1] * (right.ndim - 2)), right)
    return _multiplied(update, weight)


def _multiplied(update: Update, weight: Callable[[], Tensor]) -> Tensor:
    """The kinds that multiply the layer's own weight, or a part of it."""
    own = weight()
    if isinstance(update, ScaledOutput):
        return update.excess.to(own).view(-1, *[1] * (own.ndim - 1)) * own
    if isinstance(update, RotatedOutput):
        groups = own.flatten(1).unflatten(0, update.blocks.shape[:2])
        return torch.einsum("kmn,kni->kmi", update.blocks.to(own), groups).reshape(own.shape)
    if isinstance(update, Slice):
        part = own.narrow(update.axis, update.start, update.length)
        result = torch.zeros_like(own)
        result.narrow(update.axis, update.start, update.length).copy_(dense_difference(update.inner, lambda: part))
        return result
    raise TypeError(f"An update of kind {type(update).__name__} cannot be written as a difference.")


def reduce_rank(update: LowRank | Tensor, rank: int) -> tuple[LowRank, float]:
    """Approximate an update by the closest one of a rank (Eckart and Young 1936).

    Args:
        update: a low-rank pair, or a dense difference float[out, in, *kernel].
        rank: at least 1. A larger one than the update has leaves the update exact.

    Returns:
        The update, and the relative error left, ``||update - result|| / ||update||`` in the Frobenius norm; 0 for an update of 0.
    """
    kernel = (update.down if isinstance(update, LowRank) else update).shape[1:]
    if isinstance(update, LowRank):
        # With up = Q R and down^T = P S the singular values are those of the small matrix R S^T.
        q, r = torch.linalg.qr(update.up.double())
        p, s = torch.linalg.qr(update.down.flatten(1).double().t())
        left, values, right = torch.linalg.svd(r @ s.t(), full_matrices=False)
        left, right = q @ left, right @ p.t()
    else:
        left, values, right = torch.linalg.svd(update.flatten(1).double(), full_matrices=False)
    count = min(rank, len(values))
    total = float(values.square().sum())
    error = (float(values[count:].square().sum()) / total) ** 0.5 if total > 0 else 0.0
    root = values[:count].sqrt()
    down = (root[:, None] * right[:count]).float().view(count, *kernel)
    return LowRank(down, (left[:, :count] * root).float()), error
