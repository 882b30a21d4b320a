"""Groups of adapters that were trained together: what a file's header says, and whether the adapters at hand are one group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEY = "diffusion_blend.group"
CROSS = "cross"
"""The kind of a group of cross adapters; see `cross`."""
STACKED = "stacked"
"""The kind of a group that was trained to be stacked; see `training.stacking`."""


@dataclass(frozen=True)
class Group:
    """The place of an adapter in its group.

    Attributes:
        kind: `STACKED`, or another kind.
        id: the same in all files of the group and in no other file.
        member: the adapter's place, from 0.
        rewards: the names of all members.
        pair: of a cross adapter, the fingerprints of the two adapters that it belongs to; see `fingerprint`.
        pair_names: their names.
    """

    kind: str
    id: str
    member: int
    rewards: tuple[str, ...]
    pair: tuple[str, ...] = ()
    pair_names: tuple[str, ...] = ()


def parse_group(metadata: Mapping[str, str]) -> Group | None:
    """Read the group from the header of an adapter file; None where the file names none.

    Raises:
        ValueError: the entry is not what `training.stacking.member_metadata` writes.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        entry = json.loads(text)
        place = str(entry["kind"]), str(entry["id"]), int(entry["member"])
        listed = entry["rewards"], entry.get("pair", ()), entry.get("pair_names", ())
        names = (tuple(map(str, some)) for some in listed)
        group = Group(*place, *names)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its metadata entry {KEY} is {text[:200]!r}, which is no group of adapters") from error
    if not 0 <= group.member < len(group.rewards):
        raise ValueError(f"its metadata entry {KEY} says member {group.member} of {len(group.rewards)}")
    if group.kind == CROSS and (len(group.pair), len(group.pair_names)) != (2, 2):
        raise ValueError(f"its metadata entry {KEY} is of a cross adapter and does not name its two adapters")
    return group


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of a file's tensors with their keys. The header does not count, so that it may be edited."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_stacked_group(groups: Sequence[Group | None]) -> bool:
    """Whether adapters are all members of one group that was trained to be stacked, each once."""
    return not stacking_refusal(groups, [""] * len(groups)) and not missing_members(groups)


def stacking_refusal(groups: Sequence[Group | None], names: Sequence[str]) -> str:
    """Why adapters are not of one group that was trained to be stacked; empty where they are.

    Args:
        groups: of each adapter.
        names: of the adapters.
    """
    stacked = [group if group is not None and group.kind == STACKED else None for group in groups]
    others = [name for name, group in zip(names, stacked, strict=True) if group is None]
    if others:
        return (
            f"{', '.join(others)} {'was' if len(others) == 1 else 'were'} not trained to be stacked (algorithm.stacked of the "
            "trainer)"
        )
    if len({group.id for group in stacked if group is not None}) > 1:
        listed = ", ".join(
            f"{name}: group {group.id}" for name, group in zip(names, stacked, strict=True) if group is not None
        )
        return f"the adapters are of different groups, which were not trained together ({listed})"
    members = [group.member for group in stacked if group is not None]
    twice = sorted({names[i] for i, member in enumerate(members) if members.count(member) > 1})
    if twice:
        return f"the same adapter is there twice ({', '.join(twice)})"
    return ""


def missing_members(groups: Sequence[Group | None]) -> list[str]:
    """The rewards of a group whose adapters are not there, for adapters of one group."""
    known = [group for group in groups if group is not None]
    if not known:
        return []
    there = {group.member for group in known}
    return [reward for member, reward in enumerate(known[0].rewards) if member not in there]
