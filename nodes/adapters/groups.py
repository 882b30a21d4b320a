"""What the nodes make of adapters that belong together: those that were trained to be stacked, and cross adapters."""

from __future__ import annotations

from collections.abc import Sequence

from ...blending.cross import Pair, cross_gates, find_pairs, is_cross, pair_problems
from ...blending.groups import KEY, Group, fingerprint, is_stacked_group, missing_members, parse_group, stacking_refusal
from ...blending.slots import Slots
from ..engine.notices import notify
from .files import RewardLoRA, RewardLoRAs

ONE_CALL = (
    "These adapters were trained to be stacked, so they need one model call a step only: use Blend Model with the method "
    "'stacked', or ComfyUI's Load LoRA nodes with the weights as strengths. The method '{}' does not use that."
)


ONE_CALL_CROSS = (
    "Cross adapters are loaded, with which one model call a step comes near to the blend: use Blend Model with the method "
    "'soup'. The method '{}' {}."
)


def group_of(adapter: RewardLoRA) -> Group | None:
    """The group that a file names.

    Raises:
        ValueError: its entry cannot be read.
    """
    try:
        return parse_group(adapter.metadata)
    except ValueError as error:
        raise ValueError(f"{adapter.file}: {error}") from error


def groups_of(loras: RewardLoRAs) -> list[Group | None]:
    """The group of every adapter; errors as `group_of`."""
    return [group_of(adapter) for adapter in loras]


def loaded(adapters: Sequence[RewardLoRA], slots: Slots, earlier: RewardLoRAs | None) -> RewardLoRAs:
    """Put the adapters of a loader after those of earlier loaders. Cross adapters are set apart, and their slots are empty.

    Args:
        adapters: the files, one for each slot in use.
        slots: of the loader, see `slots.Slots`.
        earlier: of the loaders before it.
    """
    # An entry that cannot be read is refused where groups matter, with the file's name.
    crosses = [
        adapter for adapter in adapters if '"cross"' in adapter.metadata.get(KEY, "") and is_cross(group_of(adapter))
    ]
    files = iter(adapters)
    own = [[used and next(files) not in crosses for used in loader] for loader in slots]
    weighted = tuple(adapter for adapter in adapters if adapter not in crosses)
    if earlier is None:
        return RewardLoRAs(weighted, slots=own, crosses=tuple(crosses))
    return RewardLoRAs(
        earlier.adapters + weighted, slots=[*earlier.loaders, *own], crosses=earlier.crosses + tuple(crosses)
    )


def pairs_of(loras: RewardLoRAs) -> tuple[Pair | None, ...]:
    """The members of each cross adapter among the adapters. A message says which of them are missing."""
    groups = [group for adapter in loras.crosses if (group := group_of(adapter)) is not None]
    pairs = find_pairs(groups, [fingerprint(adapter.tensors) for adapter in loras])
    for problem in pair_problems(groups, [adapter.name for adapter in loras.crosses], pairs):
        notify(problem)
    return tuple(pairs)


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
    """Say that a whole group, or cross adapters, need one call only, where a method that takes another way is used."""
    if loras.crosses:
        use = "uses them only in its steps after the blended ones" if method == "early" else "does not use them"
        notify(ONE_CALL_CROSS.format(method, use))
    if len(loras.adapters) > 1 and is_stacked_group(groups_of(loras)):
        notify(ONE_CALL.format(method))


def with_crosses(loras: RewardLoRAs, coefficients: Sequence[float]) -> tuple[RewardLoRAs, list[float]]:
    """Return adapters and cross adapters as adapters alike, with the gates that the method soup gives them."""
    if not loras.crosses:
        return loras, list(coefficients)
    gates = tuple(coefficients)
    return RewardLoRAs(loras.adapters + loras.crosses), [*gates, *cross_gates(gates, pairs_of(loras))]
