"""The kinds of update that an adapter makes to a layer, each as the exact change of the layer's output.

With ``W`` a layer's weight and ``W_i`` the same weight as adapter i alone changes it, a kind computes

    delta_i(x, y) = W_i x - W x,        y = W x + b the layer's own output.

For any gates, ``y + sum_i g_i delta_i(x, y)`` is the output of a layer with the weight ``W + sum_i g_i (W_i - W)``. So every
method that chooses gates (`plans`) works for every kind alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .layers import Layer, along_channels

AnyUpdate = TypeVar("AnyUpdate", bound="Update")


class Update:
    """One adapter's update of one layer. Subclasses are frozen dataclasses of tensors and of other updates."""

    @property
    def reads_output(self) -> bool:
        """Whether ``delta`` depends on y, so that it is exact only while the layer's weight is the W that it was made for."""
        return False

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """Return ``W_i x - W x``.

        Args:
            layer: applies a weight as the layer applies its own.
            x: the layer's input, [rows, ...].
            y: the layer's own output, [rows, ...], not yet changed by any adapter.
        """
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the update, in the order of the fields."""
        found: list[Tensor] = []
        for value in _values(self):
            found += [value] if isinstance(value, Tensor) else value.tensors() if isinstance(value, Update) else []
        return found

    def with_tensors(self: AnyUpdate, tensors: Iterator[Tensor]) -> AnyUpdate:
        """Return the same update with other tensors, given in the order of `tensors`."""
        changes: dict[str, Any] = {}
        for field, value in zip(_fields(self), _values(self), strict=True):
            if isinstance(value, Tensor):
                changes[field] = next(tensors)
            elif isinstance(value, Update):
                changes[field] = value.with_tensors(tensors)
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def like(self: AnyUpdate, tensor: Tensor) -> AnyUpdate:
        """Return the update with the dtype and on the device of a tensor; itself where they are already the same."""
        tensors = self.tensors()
        if all(part.dtype == tensor.dtype and part.device == tensor.device for part in tensors):
            return self
        return self.with_tensors(part.to(tensor) for part in tensors)


def _fields(update: Update) -> list[str]:
    return [field.name for field in fields(update)]  # pyright: ignore[reportArgumentType]


def _values(update: Update) -> list[Any]:
    return [getattr(update, field) for field in _fields(update)]


@dataclass(frozen=True)
class LowRank(Update):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): ``W_i = W + up @ down``.

    Args:
        down: A, float[rank, in, *kernel] (no kernel for a Linear layer).
        up: B, float[out, rank], with the adapter's scale (alpha / rank times strength) in it.

    Raises:
        ValueError: the ranks differ, or the rank is 0.
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        rank = self.down.shape[0]
        if self.up.ndim != 2 or self.up.shape[1] != rank or rank == 0:
            raise ValueError(
                f"up of shape {list(self.up.shape)} and down of shape {list(self.down.shape)} are no low-rank pair: "
                "the same rank above 0 must be up's second and down's first dimension."
            )

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        return _from_channels(layer, self.up, layer.apply(x, self.down))


@dataclass(frozen=True)
class Difference(Update):
    """A full difference: ``W_i = W + weight``, of a Linear layer, a convolution, an embedding or a normalisation.

    Args:
        weight: the difference, of the shape of the layer's weight.
    """

    weight: Tensor

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        return layer.apply(x, self.weight)


@dataclass(frozen=True)
class BiasDifference(Update):
    """``b_i = b + bias``.

    Args:
        bias: the difference, float[out].
    """

    bias: Tensor

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        return along_channels(layer, self.bias, y).expand_as(y)


@dataclass(frozen=True)
class HadamardProduct(Update):
    """LoHa (FedPara, Hyeon-Woo et al. 2022, arXiv 2108.06098): ``W_i = W + (up1 @ down1) * (up2 @ down2)``, elementwise.

    The product is made anew in every call, so that memory holds only the factors.

    Args:
        up1, up2: float[out, r1] and float[out, r2].
        down1, down2: float[r1, in, *kernel] and float[r2, in, *kernel].
    """

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        weight = (self.up1 @ self.down1.flatten(1)).mul_(self.up2 @ self.down2.flatten(1))
        return layer.apply(x, weight.view(-1, *self.down1.shape[1:]))


@dataclass(frozen=True)
class KroneckerProduct(Update):
    """LoKr (LyCORIS, Yeh et al. 2024, arXiv 2309.14859): ``W_i = W + kron(left, right)``, applied without making the product.

    With ``x`` as a matrix ``X[b, d]``, ``kron(left, right) x = left X right^T``. The cheaper of the two orders is taken.

    Args:
        left: float[a, b], with the adapter's scale in it.
        right: float[c, d, *kernel], or float[r, d, *kernel] where ``up`` is given.
        up: float[c, r]: the right factor is ``up @ right``. None if it is whole.
    """

    left: Tensor
    right: Tensor
    up: Tensor | None = None

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        (a, b), d = self.left.shape, self.right.shape[1]
        c = self.right.shape[0] if self.up is None else self.up.shape[0]
        groups = x.unflatten(layer.channels, (b, d))
        if b * c * (a + d) <= a * d * (b + c):
            groups = self._left(layer, self._right(layer, groups))
        else:
            groups = self._right(layer, self._left(layer, groups))
        first = groups.ndim - 2 if layer.channels == -1 else 1
        return groups.flatten(first, first + 1)

    def _left(self, layer: Layer, groups: Tensor) -> Tensor:
        """[..., b, d] -> [..., a, d], or [N, b, d, ...] -> [N, a, d, ...] with channels second."""
        if layer.channels == -1:
            return self.left @ groups
        return torch.einsum("ab,nb...->na...", self.left, groups)

    def _right(self, layer: Layer, groups: Tensor) -> Tensor:
        if layer.channels != -1:  # a convolution takes the groups as rows of a batch
            count = groups.shape[:2]
            return self._product(layer, groups.flatten(0, 1)).unflatten(0, count)
        return self._product(layer, groups)

    def _product(self, layer: Layer, x: Tensor) -> Tensor:
        result = layer.apply(x, self.right)
        return result if self.up is None else _from_channels(layer, self.up, result)


@dataclass(frozen=True)
class ScaledOutput(Update):
    """``W_i = s W`` with a factor s for each output: ``delta = (s - 1)(y - b)``.

    DoRA (Liu et al. 2024, arXiv 2402.09353) is ``s (W + up @ down)``: this update and the `LowRank` pair ``(s up, down)``.
    ``s - 1`` is stored, because s is near 1 and half precision would lose the difference.

    Args:
        excess: s - 1, float[out].
        bias: the layer's bias, float[out], or None.
    """

    excess: Tensor
    bias: Tensor | None

    @property
    def reads_output(self) -> bool:
        return True

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        return along_channels(layer, self.excess, y) * _without_bias(layer, self.bias, y)


@dataclass(frozen=True)
class RotatedOutput(Update):
    """OFT (Qiu et al. 2023, arXiv 2306.07280): ``W_i = R W``, with R block-diagonal.

    ``delta = (R - 1)(y - b)``.

    Args:
        blocks: the blocks of R - 1, float[blocks, size, size]; out = blocks * size.
        bias: the layer's bias, float[out], or None.
    """

    blocks: Tensor
    bias: Tensor | None

    @property
    def reads_output(self) -> bool:
        return True

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        product = _without_bias(layer, self.bias, y).movedim(layer.channels, -1)
        rotated = torch.einsum("kmn,...kn->...km", self.blocks, product.unflatten(-1, self.blocks.shape[:2]))
        return rotated.flatten(-2).movedim(-1, layer.channels)


@dataclass(frozen=True)
class Slice(Update):
    """An update of some rows or columns of a fused layer's weight.

    Args:
        inner: the update of the slice.
        axis: 0 for outputs (rows), 1 for inputs (columns).
        start, length: of the slice.
    """

    inner: Update
    axis: int
    start: int
    length: int

    @property
    def reads_output(self) -> bool:
        return self.inner.reads_output

    def delta(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        if self.axis == 1:
            return self.inner.delta(layer, x.narrow(layer.channels, self.start, self.length), y)
        part = y.narrow(layer.channels, self.start, self.length)
        result = torch.zeros_like(y)
        result.narrow(layer.channels, self.start, self.length).copy_(self.inner.delta(layer, x, part))
        return result


@dataclass(frozen=True)
class ParameterDifference(Update):
    """A difference of a parameter that no layer's output shows alone. The parameter is exchanged during a call (`exchange`).

    Args:
        value: the difference, of the parameter's shape.
    """

    value: Tensor


def _from_channels(layer: Layer, up: Tensor, hidden: Tensor) -> Tensor:
    """Apply an up factor to the channels: [..., R] x [out, R] -> [..., out], or channels second."""
    if layer.channels == -1:
        return hidden @ up.t()
    return torch.einsum("or,nr...->no...", up, hidden)


def _without_bias(layer: Layer, bias: Tensor | None, y: Tensor) -> Tensor:
    return y if bias is None else y - along_channels(layer, bias, y)
