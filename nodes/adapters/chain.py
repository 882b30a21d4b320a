"""What a chain of LoRA nodes added to a MODEL, as one adapter."""

from __future__ import annotations

from typing import Any

from ..host import Patcher
from .files import RewardLoRA
from .names import cleaned_name


def adapter_of_chain(plain: Patcher, changed: Patcher, name: str) -> RewardLoRA:
    """Return the patches that a chain of nodes added to a MODEL as one adapter.

    Args:
        plain: the MODEL before the chain.
        changed: the same MODEL after the chain.
        name: shown to the artist.

    Raises:
        ValueError: the MODELs are of different checkpoints, the second is not made from the first, or nothing was added.
    """
    if plain.model is not changed.model:
        raise ValueError(
            "model and model_with_loras are different checkpoints: connect the MODEL from before the LoRA nodes to model, and "
            "the same MODEL after them to model_with_loras."
        )
    before, after = plain.patches, changed.patches
    added: dict[str, list[Any]] = {}
    for key, patches in after.items():
        earlier = before.get(key, [])
        same = [a[0] == b[0] and a[1] is b[1] for a, b in zip(earlier, patches, strict=False)]
        if len(earlier) > len(patches) or not all(same):
            raise ValueError(
                "model carries LoRAs that model_with_loras does not carry: connect the MODEL from which the chain starts."
            )
        if len(patches) > len(earlier):
            added[key] = patches[len(earlier) :]
    if before.keys() - after.keys():
        raise ValueError(
            "model carries LoRAs that model_with_loras does not carry: connect the MODEL from which the chain starts."
        )
    if not added:
        raise ValueError(
            "The chain changes no weight of the MODEL: put at least one LoRA node between model and model_with_loras. Nodes that "
            "add a LoRA in another way (hooks, bypass) are not seen here."
        )
    name = cleaned_name(name) or "chain"
    return RewardLoRA(name, name, {}, None, 1.0, patches=added)
