"""Adapters that are in memory already: mappings of tensors, and peft models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .scaling import Scaling, scaling_of


def tensors_in_memory(name: str, source: Any) -> dict[str, Tensor]:
    """The tensors of a mapping or of a peft model's first adapter.

    Raises:
        TypeError: a mapping of other things.
        ValueError: neither of them.
    """
    if isinstance(source, Mapping):
        for key, tensor in source.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise TypeError(
                    f"adapter {name!r} is a mapping with {key!r}: {tensor!r}: give a mapping of keys to tensors, or the path of "
                    "a .safetensors file"
                )
        return dict(source)
    if not hasattr(source, "peft_config"):
        raise ValueError(
            f"adapter {name!r} is a {type(source).__name__}: give a .safetensors file, a folder of peft, a mapping of tensors, "
            "or a peft model"
        )
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(source, adapter_name=next(iter(source.peft_config)))


def scaling_in_memory(source: Any) -> Scaling:
    """The scaling of a mapping, whose layers have alphas of their own, or of a peft model."""
    if isinstance(source, Mapping):
        return Scaling()
    config = next(iter(source.peft_config.values()))
    return scaling_of(config.to_dict())
