"""Groups of adapters that were trained together."""

from __future__ import annotations

import json

import pytest
from diffusion_blend.blending.groups import (
    KEY,
    Group,
    is_stacked_group,
    missing_members,
    parse_group,
    stacking_refusal,
)

REWARDS = ("a", "b", "c")


def member(i: int, group: str = "one", kind: str = "stacked") -> Group:
    return Group(kind, group, i, REWARDS)


def test_a_header_is_read_back() -> None:
    entry = {"kind": "stacked", "id": "one", "member": 1, "rewards": list(REWARDS)}
    assert parse_group({KEY: json.dumps(entry)}) == member(1)
    assert parse_group({"diffusion_blend.reward": "a"}) is None


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "{}", "null", '{"kind": "stacked", "id": "x", "member": "y", "rewards": []}']
)
def test_another_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no group of adapters"):
        parse_group({KEY: text})


def test_a_member_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="member 2 of 2"):
        parse_group({KEY: '{"kind": "stacked", "id": "x", "member": 2, "rewards": ["a", "b"]}'})


def test_a_group_is_whole_in_any_order() -> None:
    assert is_stacked_group([member(2), member(0), member(1)])
    assert not is_stacked_group([member(2), member(0)])
    assert missing_members([member(2), member(0)]) == ["b"]
    assert stacking_refusal([member(2), member(0)], ["C", "A"]) == ""


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([member(0), None], "^two was not trained to be stacked"),
        ([None, None], "^one, two were not trained"),
        ([member(0), member(1, kind="cross")], "^two was not trained"),
        ([member(0), member(1, group="other")], "different groups.*one: group one, two: group other"),
        ([member(1), member(1)], "twice .one, two."),
    ],
)
def test_what_is_no_group_is_said(groups: list[Group | None], message: str) -> None:
    import re

    refusal = stacking_refusal(groups, ["one", "two"])
    assert re.search(message, refusal), refusal
    assert not is_stacked_group(groups)
