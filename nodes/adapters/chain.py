"""What a chain of LoRA nodes added to a MODEL, as one adapter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..engine.notices import notify
from ..host import Patcher
from .files import RewardLoRA
from .names import cleaned_name

NOT_PATCHES = {
    "injections": "LoRAs in bypass mode",
    "hook_patches": "hook LoRAs",
    "weight_wrapper_patches": "functions on weights, as Train LoRA does",
}
"""The host's names of the ways to change a layer that are no patch of its weight, and how an artist knows them."""

OTHER_CHANGES = {
    "model_options": "options (FreeU and other patches of the attention, a sampling function)",
    "object_patches": "objects (ModelSampling nodes, torch.compile)",
}
"""The host's names of changes of a MODEL that are no LoRA, and how an artist knows them."""


def adapter_of_chain(plain: Patcher, changed: Patcher, name: str) -> RewardLoRA:
    """Return the patches that a chain of nodes added to a MODEL as one adapter.

    Args:
        plain: the MODEL before the chain.
        changed: the same MODEL after the chain.
        name: shown to the artist.

    Raises:
        ValueError: the MODELs are of different checkpoints, the second is not made from the first, nothing was added, or the
            chain has a bypass or hook LoRA, which is no patch of a weight.
    """
    if plain.model is not changed.model:
        raise ValueError(
            "model and model_with_loras are different checkpoints: connect the MODEL from before the LoRA nodes to model, and "
            "the same MODEL after them to model_with_loras."
        )
    _check_only_patches(plain, changed)
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
            "The chain changes no weight of the MODEL: put at least one LoRA node between model and model_with_loras. LoRA hooks "
            "on the conditioning are not seen here."
        )
    others = [what for name, what in OTHER_CHANGES.items() if _differ(getattr(plain, name), getattr(changed, name))]
    if others:
        notify(
            f"Nodes between model and model_with_loras also change the {' and the '.join(others)} of the MODEL. Only the LoRAs "
            "become the adapter: put these nodes before model as well, or behind the blend."
        )
    name = cleaned_name(name) or "chain"
    return RewardLoRA(name, name, {}, None, 1.0, patches=added)


def _check_only_patches(plain: Patcher, changed: Patcher) -> None:
    for name, what in NOT_PATCHES.items():
        if _differ(getattr(plain, name, {}), getattr(changed, name, {})):
            raise ValueError(
                f"The nodes between model and model_with_loras add {what}, which change no weight of the MODEL and cannot become "
                "an adapter. Use Load LoRA in place of Load LoRA (Bypass), or put these nodes before model."
            )


def _differ(one: Any, other: Any) -> bool:
    """Whether two values of clones differ. The host copies dicts and lists, and shares the values in them."""
    if type(one) is not type(other):
        return True
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(_differ(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) != len(other) or any(map(_differ, one, other))
    return one is not other and (isinstance(one, Tensor) or bool(one != other))
