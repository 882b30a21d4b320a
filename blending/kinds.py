"""LoRA, LoHa and LoKr from the factors of their files, in their cheapest exact form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .updates import HadamardProduct, KroneckerProduct, LowRank, Update


@dataclass(frozen=True)
class Factors:
    """The factors of one layer, in the order of ComfyUI's reader.

    Args:
        name: ``lora`` (up, down, alpha, Tucker core, None, None), ``loha`` (w1_a, w1_b, alpha, w2_a, w2_b, t1, t2, None) or
            ``lokr`` (w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, t2, None).
        weights: tensors, alpha as a number, and None for what the file does not have.
    """

    name: str
    weights: tuple[Any, ...]


class OtherShape(ValueError):
    """An update of another shape than the layer's weight."""


def factored_form(patch: Any, rows: int, inputs: tuple[int, ...]) -> Update:
    """Convert a LoRA, LoHa or LoKr of the host's reader to the cheapest update that it equals.

    LoRA, LoCon (also with a Tucker core): ``(alpha / r) * up @ core(down)``.
    LoHa (FedPara, Hyeon-Woo et al. 2022, arXiv 2108.06098, prop. 1; LyCORIS, Yeh et al. 2024, arXiv 2309.14859):
    ``(alpha / r1) * (A1 B1) * (A2 B2)``, elementwise, of rank r1 r2.
    LoKr (LyCORIS): ``(alpha / r) * kron(W1, W2)``, of rank r1 r2. The rank of a factor that is stored whole is its smaller side.

    Args:
        patch: a value of ``comfy.lora.load_lora`` of these kinds, without a DoRA scale; or a `Factors`.
        rows: outputs of the weight, or of the slice of the weight, that it belongs to.
        inputs: its input side, ``(in, *kernel)``.

    Returns:
        The update, with alpha in it: low-rank where that takes fewer products than the kind's own form.

    Raises:
        OtherShape: the update has other sides than the weight.
        ValueError: the factors do not fit each other, or their products are more than a float holds.
    """
    sides = (rows, math.prod(inputs))
    if patch.name == "lora":
        up, down, alpha, mid, _, _ = patch.weights
        pair = _lora(up.float(), down.float(), None if mid is None else mid.float(), alpha, sides)
        _check_sides((pair.up.shape[0], pair.down[0].numel()), sides)
        return LowRank(pair.down.reshape(-1, *inputs), pair.up)
    factors: list[Any] = [weight.float() if isinstance(weight, Tensor) else weight for weight in patch.weights[:-1]]
    return (_loha if patch.name == "loha" else _lokr)(*factors, sides=sides, inputs=inputs)


def check_size(up: Tensor, down: Tensor, cause: str = "its factors make") -> None:
    """Refuse an update whose product may exceed the largest float, because the image would be black or noise.

    Args:
        up: float[out, rank].
        down: float[rank, in, *kernel].
        cause: for the message.

    Raises:
        ValueError: the product may, or a number is NaN.
    """
    _check_largest(_largest(up) * _largest(down) * down.shape[0], cause)


def _largest(factor: Tensor | None) -> float:
    return 1.0 if factor is None else float(factor.abs().max()) if factor.numel() else 0.0


def _check_largest(largest: float, cause: str = "its factors make") -> None:
    if not largest <= torch.finfo(torch.float32).max:
        raise ValueError(f"{cause} numbers as large as {largest:.0e}, more than a float holds.")


def _lora(up: Tensor, down: Tensor, mid: Tensor | None, alpha: float | None, sides: tuple[int, int]) -> LowRank:
    if up.ndim < 2 or down.ndim < 2:
        raise _wrong_shapes("LoRA", up, down, mid)
    rank = down.shape[0]
    if mid is not None:
        # The host's reader accepts only cores with as many rows as columns, and a down factor without a kernel.
        if mid.shape[:1] != mid.shape[1:2] or down.shape[1:].numel() != down.shape[1]:
            raise _wrong_shapes("Tucker decomposition", up, mid, down)
        down = _through_core(mid, down.flatten(1), sides)
    return _scaled(up.flatten(1), down, _scale(alpha, rank))


def _loha(
    a1: Tensor,
    b1: Tensor,
    alpha: float | None,
    a2: Tensor,
    b2: Tensor,
    core1: Tensor | None,
    core2: Tensor | None,
    sides: tuple[int, int],
    inputs: tuple[int, ...],
) -> Update:
    rank = b1.shape[0] if b1.ndim else 0
    up1, down1 = _composed(a1, b1, core1, sides)
    up2, down2 = _composed(a2, b2, core2, sides)
    if up1.shape[0] != up2.shape[0] or down1.shape[1:] != down2.shape[1:]:
        raise _wrong_shapes("LoHa", a1, b1, a2, b2)
    _check_sides((up1.shape[0], down1[0].numel() if rank else 0), sides)
    check_size(up1, down1)
    check_size(up2, down2)
    scale = _scale(alpha, rank)
    bounds = [_largest(up) * _largest(down) * down.shape[0] for up, down in ((up1, down1), (up2, down2))]
    _check_largest(math.prod(bounds) * max(1.0, abs(scale)))
    up1 = up1 * scale
    down1, down2 = down1.reshape(-1, *inputs), down2.reshape(-1, *inputs)
    if up1.shape[1] * up2.shape[1] * sum(sides) >= math.prod(sides):
        return HadamardProduct(up1, down1, up2, down2)
    # Row i * r2 + j of down belongs to column i * r2 + j of up.
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None] * down2[None]).flatten(0, 1)
    return _checked(LowRank(down, up))


def _lokr(
    w1: Tensor | None,
    w2: Tensor | None,
    alpha: float | None,
    w1_a: Tensor | None,
    w1_b: Tensor | None,
    w2_a: Tensor | None,
    w2_b: Tensor | None,
    core: Tensor | None,
    sides: tuple[int, int],
    inputs: tuple[int, ...],
) -> Update:
    if (w1 is None and w1_a is None) or (w2 is None and w2_a is None):
        raise ValueError(f"it holds no lokr_w{1 if w1 is None and w1_a is None else 2}; the file is incomplete.")
    # As LyCORIS: only factored parts have a rank that alpha is divided by, the second before the first.
    factored = w2_b if w2 is None else w1_b if w1 is None else None
    scale = 1.0 if factored is None else _scale(alpha, factored.shape[0])
    if w2 is None:
        up, right = _composed(w2_a, w2_b, core, sides)
    elif w2.ndim:
        up, right = None, w2
    else:
        raise _wrong_shapes("LoKr", w2)
    rows2 = right.shape[0] if up is None else up.shape[0]
    left = _whole(w1, w1_a, w1_b, (sides[0] // max(rows2, 1), inputs[0]))
    if left.ndim != 2 or right.ndim not in (2, 4, len(inputs) + 1) or not left.numel() or not right.numel():
        raise _wrong_shapes("LoKr", w1, w1_a, w1_b, w2, w2_a, w2_b)
    _check_sides((left.shape[0] * rows2, left.shape[1] * right[0].numel()), sides)
    if inputs[0] % left.shape[1]:
        raise _wrong_shapes("LoKr", left, right)
    bound = _largest(left) * _largest(right) * _largest(up) * (1 if up is None else up.shape[1])
    _check_largest(bound * max(1.0, abs(scale)))
    right = right.reshape(right.shape[0], inputs[0] // left.shape[1], *inputs[1:])
    return _kronecker_or_low_rank(KroneckerProduct(left * scale, right, up), sides)


def _kronecker_or_low_rank(product: KroneckerProduct, sides: tuple[int, int]) -> Update:
    """``kron(A1 B1, A2 B2) = kron(A1, A2) kron(B1, B2)`` is low-rank, which is used where it is faster and not much larger."""
    up1, down1 = _split(product.left)
    up2, down2 = _split(product.right) if product.up is None else (product.up, product.right)
    (a, b), right = product.left.shape, product.right
    rank = up1.shape[1] * up2.shape[1]
    whole = right.numel() if product.up is None else right.numel() + product.up.numel()
    rows2 = right.shape[0] if product.up is None else product.up.shape[0]
    cost = min(b * whole + a * b * rows2, a * whole + a * b * right.shape[1])
    if rank * sum(sides) > min(cost, 2 * (product.left.numel() + whole)):
        return product
    down = torch.kron(down1.reshape(*down1.shape, *[1] * (down2.ndim - 2)), down2)
    return _checked(LowRank(down, torch.kron(up1, up2)))


def _whole(whole: Tensor | None, a: Any, b: Any, largest: tuple[int, int]) -> Tensor:
    """The first factor of a LoKr as one matrix. Its size is checked before the product is made."""
    if whole is not None:
        return whole
    a, b = _composed(a, b, None, largest)
    if a.shape[0] > largest[0] or b.shape[1] > largest[1]:
        raise OtherShape(f"its first factor is {a.shape[0]} x {b.shape[1]}, more than {largest[0]} x {largest[1]}.")
    return a @ b


def _composed(a: Any, b: Any, core: Tensor | None, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a factored matrix as up [out, r] and down [r, in, *kernel]: ``a @ b``, or LyCORIS' Tucker form with a core."""
    if a.ndim != 2 or b.ndim != 2:
        raise _wrong_shapes("LyCORIS", a, b, core)
    if core is not None:
        a, b = a.t(), _through_core(core, b, sides)
    if a.shape[1] != b.shape[0]:
        raise _wrong_shapes("LyCORIS", a, b, core)
    return a, b


def _through_core(core: Tensor, down: Tensor, sides: tuple[int, int]) -> Tensor:
    """LyCORIS' Tucker form: core [o, i, kh, kw], down [i, in] -> [o, in, kh, kw]. Refused if larger than the layer."""
    if core.ndim != 4 or core.shape[1] != down.shape[0] or core.shape[0] > max(sides):
        raise _wrong_shapes("Tucker decomposition", core, down)
    if down.shape[1] * core.shape[2:].numel() > sides[1]:
        raise _wrong_shapes("Tucker decomposition", core, down)
    return torch.einsum("oi...,in->on...", core, down)


def _split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a whole matrix as up [out, r] and down [r, in, *kernel], one of them the identity, r the smaller side."""
    rows, columns = weight.shape[0], weight.shape[1:].numel()
    if rows <= columns:
        return torch.eye(rows), weight
    return weight.flatten(1), torch.eye(columns).reshape(columns, *weight.shape[1:])


def _check_sides(found: tuple[int, int], sides: tuple[int, int]) -> None:
    """Check sizes before any product: a small file may stand for more numbers than the whole model has."""
    if found != sides:
        raise OtherShape(f"its update is {found[0]} x {found[1]}, but the layer's weight is {sides[0]} x {sides[1]}.")


def _checked(pair: LowRank) -> LowRank:
    check_size(pair.up, pair.down)
    return pair


def _scaled(up: Tensor, down: Tensor, scale: float) -> LowRank:
    """Return the pair with its scale. Its numbers must be small enough without it, too: the host applies the scale last."""
    pair = LowRank(down, up * scale)
    check_size(up, down)
    return pair


def _scale(alpha: float | None, rank: int) -> float:
    if rank == 0:
        raise ValueError("its rank is 0.")
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha}.")
    return 1.0 if alpha is None else alpha / rank


def _wrong_shapes(kind: str, *factors: Tensor | None) -> ValueError:
    shapes = [list(factor.shape) for factor in factors if factor is not None]
    return ValueError(f"its factors have shapes {shapes}, which are not those of a {kind}.")
