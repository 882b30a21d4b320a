"""What the nodes say about adapters that were trained to be stacked."""

from __future__ import annotations

from ...blending.groups import Group, is_stacked_group, missing_members, parse_group, stacking_refusal
from ..engine.notices import notify
from .files import RewardLoRAs

ONE_CALL = (
    "These adapters were trained to be stacked, so they need one model call a step only: use Blend Model with the method "
    "'stacked', or ComfyUI's Load LoRA nodes with the weights as strengths. The method '{}' does not use that."
)


def groups_of(loras: RewardLoRAs) -> list[Group | None]:
    """The group of every adapter.

    Raises:
        ValueError: a file's entry cannot be read.
    """
    groups = []
    for adapter in loras:
        try:
            groups.append(parse_group(adapter.metadata))
        except ValueError as error:
            raise ValueError(f"{adapter.file}: {error}") from error
    return groups


def check_stacked(loras: RewardLoRAs) -> None:
    """Check that adapters may be used with the method ``stacked``. A message says which members of the group are missing.

    Raises:
        ValueError: they are not of one group that was trained to be stacked.
    """
    groups = groups_of(loras)
    refusal = stacking_refusal(groups, loras.names)
    if refusal:
        raise ValueError(
            f"The method 'stacked' is for adapters that were trained together to be stacked, but {refusal}. Choose all files of "
            "one group, or another method: 'blend', or 'soup', which stacks any adapters."
        )
    missing = missing_members(groups)
    if missing:
        notify(f"The group of these adapters has more members, which count as weight 0: {', '.join(missing)}.")


def note_stacked(method: str, loras: RewardLoRAs) -> None:
    """Say that a whole group needs one call only, where a method that takes another way is used."""
    if len(loras.adapters) > 1 and is_stacked_group(groups_of(loras)):
        notify(ONE_CALL.format(method))
