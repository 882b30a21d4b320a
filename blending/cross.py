"""Cross adapters: one more adapter for each pair, with the gate ``4 c_i c_j``, so that every preference takes one call.

To second order in the updates, the error of a soup to the blend is a sum over pairs of ``c_i c_j`` times a term of the pair
alone, where the coefficients sum to 1. So one adapter for each pair can hold the error for every preference. The gate is 0
where one adapter has all the weight, and 1 halfway between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .groups import CROSS, Group
from .plans import Gates, Plan, Planner
from .step_info import StepInfo

Pair = tuple[int, int]
"""The places of a pair's members among the adapters."""


def cross_gates(gates: Gates, pairs: Sequence[Pair | None]) -> Gates:
    """Return ``4 g_i g_j`` for each pair; 0 for a pair whose members are not there."""
    return tuple(0.0 if pair is None else 4 * gates[pair[0]] * gates[pair[1]] for pair in pairs)


@dataclass(frozen=True)
class Crossed:
    """A planner whose rows of gates also have the gates of cross adapters, which come after the others.

    Rows of one adapter, and of the base, have cross gates 0, so only the rows of a soup change.

    Args:
        planner: of the m adapters.
        pairs: of each cross adapter, in order.
    """

    planner: Planner
    pairs: tuple[Pair | None, ...]

    @property
    def repeats_evaluation(self) -> bool:
        """As the inner planner's."""
        return getattr(self.planner, "repeats_evaluation", False)

    def __call__(self, step: StepInfo) -> Plan:
        return self._extended(self.planner(step))

    def _extended(self, plan: Plan) -> Plan:
        gates = tuple(tuple(own + cross_gates(own, self.pairs) for own in row) for row in plan.gates)
        inner = plan.without_residual
        return replace(plan, gates=gates, without_residual=None if inner is None else self._extended(inner))


def is_cross(group: Group | None) -> bool:
    """Whether a file is a cross adapter."""
    return group is not None and group.kind == CROSS


def find_pairs(groups: Sequence[Group], fingerprints: Sequence[str]) -> list[Pair | None]:
    """Find the members of cross adapters among the adapters.

    Args:
        groups: of the cross adapters.
        fingerprints: of the adapters, see `groups.fingerprint`.

    Returns:
        For each cross adapter the places of its members, None where one of them is not there.
    """
    places = {fingerprint: place for place, fingerprint in enumerate(fingerprints)}
    found: list[Pair | None] = []
    for group in groups:
        first, second = (places.get(member) for member in group.pair)
        found.append(None if first is None or second is None or first == second else (first, second))
    return found


def pair_problems(groups: Sequence[Group], names: Sequence[str], pairs: Sequence[Pair | None]) -> list[str]:
    """What is missing of groups of cross adapters, as sentences.

    Args:
        groups: of the cross adapters.
        names: of the cross adapters.
        pairs: of `find_pairs`.
    """
    said = [
        f"{name} is the cross adapter of {' and '.join(group.pair_names)}, which are not both there, so it has no effect."
        for group, name, pair in zip(groups, names, pairs, strict=True)
        if pair is None
    ]
    there = [pair for pair in pairs if pair is not None]
    twice = sorted({name for name, pair in zip(names, pairs, strict=True) if there.count(pair) > 1})  # pyright: ignore[reportArgumentType]
    if twice:
        said.append(f"Several cross adapters are of the same pair ({', '.join(twice)}), and their effects add up.")
    for id_ in dict.fromkeys(group.id for group in groups):
        own = [group for group in groups if group.id == id_]
        members = {group.member for group in own}
        missing = [name for place, name in enumerate(own[0].rewards) if place not in members]
        if missing:
            said.append(f"The group of cross adapters has more files, which are not there: {', '.join(missing)}.")
    return said
