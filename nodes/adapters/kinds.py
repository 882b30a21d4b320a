"""Each kind of update that ComfyUI's reader gives, as an exact low-rank pair; other kinds are refused by name."""

from __future__ import annotations

from typing import Any

import comfy.weight_adapter
import torch
from torch import Tensor

from ...blending.adapters import LowRank

MERGE = "Load it with the host's Load LoRA before the blend (it then belongs to the base), or convert it to a LoRA."

_BASE_WEIGHTS = "changes the model's own weights by multiplying them"
REFUSED = {
    "glora": _BASE_WEIGHTS,
    "oft": _BASE_WEIGHTS,
    "boft": _BASE_WEIGHTS,
    "diff": "is a full difference",
    "set": "replaces a weight",
}
"""The reason why a kind is no low-rank update of a layer."""


class CannotBlend(ValueError):
    """An adapter of a kind that cannot be blended with any numbers."""


def low_rank_form(patch: Any, sides: tuple[int, int]) -> LowRank:
    """Convert one update of the host's reader to the low-rank pair that it equals.

    LoRA, LoCon (also with a Tucker core): ``(alpha / r) * up @ core(down)``.
    LoHa (FedPara, Hyeon-Woo et al. 2022, arXiv 2108.06098, prop. 1; LyCORIS, Yeh et al. 2024, arXiv 2309.14859):
    ``(alpha / r1) * (A1 B1) * (A2 B2)``, elementwise, of rank r1 r2.
    LoKr (LyCORIS): ``(alpha / r) * kron(W1, W2)``, of rank r1 r2. The rank of a factor that is stored whole is its smaller side.

    Args:
        patch: a value of ``comfy.lora.load_lora``.
        sides: rows and columns of the weight it belongs to, kernels counted among the columns.

    Returns:
        The pair, with alpha in it. ``down`` may have a kernel.

    Raises:
        CannotBlend: a LoHa or LoKr whose rank is not below the weight's smaller side.
        ValueError: the factors do not fit each other or the weight.
    """
    if patch.name == "lora":
        up, down, alpha, mid, _, _ = patch.weights
        return _lora(up.float(), down.float(), None if mid is None else mid.float(), alpha, sides)
    factors: list[Any] = [weight.float() if isinstance(weight, Tensor) else weight for weight in patch.weights[:-1]]
    return _loha(*factors, sides=sides) if patch.name == "loha" else _lokr(*factors, sides=sides)


def check_kind(patch: Any) -> None:
    """Refuse updates of kinds that are not low-rank.

    Args:
        patch: a value of ``comfy.lora.load_lora``.

    Raises:
        CannotBlend: of another kind than LoRA, LoHa and LoKr, a DoRA, a LoKr with a Tucker core (torch's kron takes no such
            views, and ComfyUI up to 0.33.0 logs that and patches nothing), or one that changes the layer's shape.
    """
    if not isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
        name = patch[0]
        raise CannotBlend(f"an update of kind '{name}' {REFUSED.get(name, 'is unknown here')} and cannot be blended.")
    name, weights = patch.name, patch.weights
    if name not in ("lora", "loha", "lokr"):
        raise CannotBlend(f"an update of kind {name} {REFUSED.get(name, 'is unknown here')} and cannot be blended.")
    dora_scale = weights[4] if name == "lora" else weights[-1]
    if dora_scale is not None:
        raise CannotBlend("this is a DoRA, which needs the model's own weights and cannot be blended.")
    if name == "lokr" and weights[1] is None and weights[7] is not None:
        raise CannotBlend(
            "this is a LoKr with a Tucker core, which the host itself does not apply and which cannot be blended."
        )
    if name == "lora" and weights[5] is not None:
        raise CannotBlend("this adapter changes the layer's shape and cannot be blended.")


def check_size(up: Tensor, down: Tensor, cause: str = "its factors make") -> None:
    """Refuse an update whose product may exceed the largest float, because the image would be black or noise.

    Args:
        up: float[out, rank].
        down: float[rank, in, *kernel].
        cause: for the message.

    Raises:
        ValueError: the product may, or a number is NaN.
    """
    largest = float(up.abs().max()) * float(down.abs().max()) * down.shape[0] if up.numel() and down.numel() else 0.0
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
) -> LowRank:
    rank = b1.shape[0] if b1.ndim else 0
    up1, down1 = _composed(a1, b1, core1, sides)
    up2, down2 = _composed(a2, b2, core2, sides)
    if up1.shape[0] != up2.shape[0] or down1.shape[1:] != down2.shape[1:]:
        raise _wrong_shapes("LoHa", a1, b1, a2, b2)
    _check_rank("loha", (up1.shape[1], up2.shape[1]), (up1.shape[0], down1[0].numel()), sides)
    check_size(up1, down1)
    check_size(up2, down2)
    # Row i * r2 + j of down belongs to column i * r2 + j of up.
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None] * down2[None]).flatten(0, 1)
    return _scaled(up, down, _scale(alpha, rank))


def _lokr(
    w1: Tensor | None,
    w2: Tensor | None,
    alpha: float | None,
    w1_a: Tensor | None,
    w1_b: Tensor | None,
    w2_a: Tensor | None,
    w2_b: Tensor | None,
    _core: Tensor | None,
    sides: tuple[int, int],
) -> LowRank:
    if (w1 is None and w1_a is None) or (w2 is None and w2_a is None):
        raise ValueError(f"it holds no lokr_w{1 if w1 is None and w1_a is None else 2}; the file is incomplete.")
    up1, down1 = _composed(w1_a, w1_b, None, sides) if w1 is None else _split(w1)
    up2, down2 = _composed(w2_a, w2_b, None, sides) if w2 is None else _split(w2)
    if down1.ndim != 2:
        raise _wrong_shapes("LoKr", w1, w2)
    kernel = down2.shape[2:]
    rows, columns = up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1] * kernel.numel()
    _check_rank("lokr", (up1.shape[1], up2.shape[1]), (rows, columns), sides)
    check_size(up1, down1)
    check_size(up2, down2)
    # kron(A1 B1, A2 B2) = kron(A1, A2) kron(B1, B2)
    up = torch.kron(up1, up2)
    down = torch.kron(down1.reshape(*down1.shape, *[1] * len(kernel)), down2)
    # As LyCORIS: only factored parts have a rank that alpha is divided by, the second before the first.
    factored = w2_b if w2 is None else w1_b if w1 is None else None
    return _scaled(up, down, 1.0 if factored is None else _scale(alpha, factored.shape[0]))


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
    if weight.ndim not in (2, 4):  # the host's Kronecker product takes no others
        raise _wrong_shapes("LoKr", weight)
    rows, columns = weight.shape[0], weight.shape[1:].numel()
    if rows <= columns:
        return torch.eye(rows), weight
    return weight.flatten(1), torch.eye(columns).reshape(columns, *weight.shape[1:])


def _check_rank(kind: str, ranks: tuple[int, int], found: tuple[int, int], sides: tuple[int, int]) -> None:
    """Check sizes before any product: a small file may stand for more numbers than the whole model has."""
    if found != sides:
        raise ValueError(f"its update is {found[0]} x {found[1]}, but the layer's weight is {sides[0]} x {sides[1]}.")
    rank = ranks[0] * ranks[1]
    if rank == 0:
        raise ValueError("its rank is 0.")
    if rank >= min(sides):
        raise CannotBlend(
            f"this update of kind {kind} has rank {rank} ({ranks[0]} x {ranks[1]}), not below the smaller side of its "
            f"{sides[0]} x {sides[1]} weight: it is not low-rank and cannot be blended."
        )


def _scaled(up: Tensor, down: Tensor, scale: float) -> LowRank:
    """Return the pair with its scale. Its numbers must be small enough without it, too: the host applies the scale last."""
    pair = LowRank(down, up * scale)
    check_size(up, down)
    return pair


def _scale(alpha: float | None, rank: int) -> float:
    if rank == 0:
        raise ValueError("its rank is 0.")
    return 1.0 if alpha is None else alpha / rank


def _wrong_shapes(kind: str, *factors: Tensor | None) -> ValueError:
    shapes = [list(factor.shape) for factor in factors if factor is not None]
    return ValueError(f"its factors have shapes {shapes}, which are not those of a {kind}.")
