"""Cross adapters among the adapters of a diffusers network: they have no weight of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..blending.cross import Crossed, find_pairs, is_cross, pair_problems
from ..blending.plans import Planner
from .adapter_files import Adapter

logger = logging.getLogger("diffusion_blend")


def split_crosses(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[Adapter]]:
    """Return the adapters that have weights, and the cross adapters.

    Raises:
        ValueError: there are only cross adapters.
    """
    crosses = [adapter for adapter in adapters if is_cross(adapter.group)]
    weighted = [adapter for adapter in adapters if not is_cross(adapter.group)]
    if crosses and not weighted:
        names = ", ".join(adapter.name for adapter in crosses)
        raise ValueError(f"{names}: only cross adapters are given; give the adapters that they belong to, too")
    return weighted, crosses


def with_crosses(planner: Planner, weighted: Sequence[Adapter], crosses: Sequence[Adapter]) -> Planner:
    """Return the planner with the gates of cross adapters after those of the others; a warning says what is missing."""
    if not crosses:
        return planner
    groups = [adapter.group for adapter in crosses if adapter.group is not None]
    pairs = find_pairs(groups, [adapter.fingerprint for adapter in weighted])
    for problem in pair_problems(groups, [adapter.name for adapter in crosses], pairs):
        logger.warning("%s", problem)
    return Crossed(planner, tuple(pairs))
