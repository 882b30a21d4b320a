"""An encoded text that carries every adapter's own encoding through the operations of conditioning nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CARRIED = frozenset(
    (
        *("add", "__add__", "__radd__", "sub", "rsub", "__sub__", "__rsub__", "mul", "multiply", "__mul__", "__rmul__"),
        *("div", "true_divide", "__truediv__", "neg", "__neg__", "lerp", "where", "mean", "sum", "zeros_like", "clone"),
        *("to", "type", "type_as", "cpu", "cuda", "float", "half", "bfloat16", "double", "contiguous", "detach"),
        *("__getitem__", "narrow", "index_select", "chunk", "split", "unbind", "cat", "concat", "concatenate", "stack"),
        *("repeat", "repeat_interleave", "expand", "expand_as", "view", "reshape", "flatten", "unflatten", "unsqueeze"),
        *("squeeze", "permute", "transpose", "movedim", "t", "pad", "_pad", "interpolate"),
    )
)
"""Names of torch's functions that conditioning nodes use: sums, factors, shapes, dtypes. They are applied to every encoding.

Functions of networks are not among them, so a plain model computes with the base's encoding alone.
"""


@dataclass(frozen=True)
class Owner:
    """The adapters that texts were encoded for.

    Args:
        names: of the adapters.
        soup: coefficients of the soup whose own encoding follows those of the adapters, or None.
    """

    names: tuple[str, ...]
    soup: tuple[float, ...] | None


class EncodedText(Tensor):
    """The base's encoding, with those of the adapters beside it.

    Attributes:
        owner: the adapters.
        others: encodings with each adapter alone, then with the soup if there is one; of the same shape.
    """

    owner: Owner
    others: tuple[Tensor, ...]

    @property
    def plain(self) -> Tensor:
        """The base's encoding."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__deepcopy__":
            return args[0].clone()
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*_part(args, None), **_part(kwargs, None))
            if name not in CARRIED and not in_place:
                return result
            owner = _owner(*args, *kwargs.values())
            if in_place and not isinstance(args[0], EncodedText):
                return result
            others = [function(*_part(args, i), **_part(kwargs, i)) for i in range(_count(owner))]
        return args[0] if in_place else bundle(owner, result, others)


def bundle(owner: Owner, base: Any, others: Sequence[Any]) -> Any:
    """Join a value of the base and those of the adapters: tensors, also in tuples, lists and dicts."""
    if isinstance(base, Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            made = base.as_subclass(EncodedText)
        made.owner, made.others = owner, tuple(others)
        return made
    if isinstance(base, (tuple, list)):
        return type(base)(bundle(owner, part, [other[i] for other in others]) for i, part in enumerate(base))
    if isinstance(base, dict):
        # An entry that only some of them have belongs to the base.
        return {
            name: bundle(owner, part, [other[name] for other in others])
            if all(name in other for other in others)
            else part
            for name, part in base.items()
        }
    return base


def _part(value: Any, index: int | None) -> Any:
    """A call's arguments for the base (None), or for one of the others."""
    if isinstance(value, EncodedText):
        return value.plain if index is None else value.others[index]
    if type(value) in (tuple, list):
        return type(value)(_part(part, index) for part in value)
    return {name: _part(part, index) for name, part in value.items()} if isinstance(value, dict) else value


def _owner(*values: Any) -> Owner:
    owners = {text.owner for text in _texts(values)}
    if len(owners) > 1:
        one, other = (" and ".join(owner.names) for owner in list(owners)[:2])
        raise ValueError(
            f"Two texts that were encoded for different adapters are joined ({one}; {other}): encode both behind the same Blend "
            "Text Encoder."
        )
    return owners.pop()


def _texts(value: Any) -> list[EncodedText]:
    if isinstance(value, EncodedText):
        return [value]
    return [text for part in value for text in _texts(part)] if isinstance(value, (tuple, list)) else []


def _count(owner: Owner) -> int:
    return len(owner.names) + (owner.soup is not None)
