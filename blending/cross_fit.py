"""The fit of a cross adapter to the blends of its pair: goals, start, and the group's entry in the header of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from .cross import Pair, cross_gates
from .distillation import Goal
from .gated_updates import Updates
from .groups import CROSS
from .layers import find_layer, layer_shape, projection
from .updates import BiasDifference, LowRank

POOL = (0.5, 0.25, 0.75, 0.0, 1.0)
"""First weights of the blends whose trajectories are fitted to, in turn."""

CHECKED = (0.25, 0.5, 0.75)
"""First weights at which the error is measured."""

LEAST_RANK = 8
"""Of layers that no member of the pair changes by a low-rank product."""


def goal_of(first: float) -> Goal:
    """The blend of two adapters by the weights ``(w, 1 - w)``, and the gates of both and of the cross adapter."""
    gates = (first, 1 - first)
    return Goal(gates, gates + cross_gates(gates, [(0, 1)]))


def start_cross(
    network: nn.Module, members: Sequence[Updates], rank: int, seed: int, device: torch.device
) -> dict[str, LowRank]:
    """Make a cross adapter that changes nothing yet, on every layer whose weight one of its two adapters changes.

    Args:
        network: the network.
        members: updates of the two adapters.
        rank: of every layer; 0 is the larger rank of the two adapters on it.
        seed: of the down factors. The up factors are 0.
        device: of the factors.
    """
    generator = torch.Generator().manual_seed(seed)
    start: dict[str, LowRank] = {}
    for layer in dict.fromkeys(layer for member in members for layer in member):
        updates = [update for member in members for update in member.get(layer, ())]
        if all(isinstance(update, BiasDifference) for update in updates) or not _takes_pairs(network, layer):
            continue
        out, taken = layer_shape(network, layer)
        inputs = torch.Size(taken).numel()
        ranks = [update.down.shape[0] for update in updates if isinstance(update, LowRank)]
        own = min(rank or max(ranks, default=LEAST_RANK), out, inputs)
        down = torch.randn((own, *taken), generator=generator) / inputs**0.5
        start[layer] = LowRank(down.to(device), torch.zeros((out, own), device=device))
    return start


def _takes_pairs(network: nn.Module, layer: str) -> bool:
    """Whether a layer can have a low-rank update: normalisations, embeddings and grouped convolutions cannot."""
    try:
        projection(find_layer(network, layer), layer)
    except ValueError:
        return False
    return True


def check_number(adapters: int) -> None:
    """Check that there is a pair.

    Raises:
        ValueError: fewer than two adapters.
    """
    if adapters < 2:
        raise ValueError(f"{adapters} adapter: a cross adapter belongs to two, so give at least two files")


def pair_entries(
    names: Sequence[str], fingerprints: Sequence[str], made_with: Sequence[Any]
) -> dict[Pair, dict[str, Any]]:
    """Return the group's entry (`groups.KEY`) in the header of each pair's file.

    Args:
        names: of the adapters.
        fingerprints: of the adapters, see `groups.fingerprint`.
        made_with: all else that decides the files, as JSON's types.

    Raises:
        ValueError: fewer than two adapters, or one of them twice.
    """
    check_number(len(names))
    if len(set(fingerprints)) < len(fingerprints):
        raise ValueError("the same adapter is given twice")
    pairs = list(combinations(range(len(names)), 2))
    run = json.dumps([list(fingerprints), *made_with])
    group: dict[str, Any] = {"kind": CROSS, "id": hashlib.sha256(run.encode()).hexdigest()[:16]}
    group["rewards"] = [f"{names[i]} x {names[j]}" for i, j in pairs]
    return {
        (i, j): group
        | {"member": member, "pair": [fingerprints[i], fingerprints[j]], "pair_names": [names[i], names[j]]}
        for member, (i, j) in enumerate(pairs)
    }
