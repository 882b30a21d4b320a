"""The pad shows the adapters that a run uses, whichever nodes are connected, bypassed or muted."""

from __future__ import annotations

import pytest
from comfy_browser import FrontEnd
from make_server_models import LORAS
from preference_pad import NAMES, Pad, build, has, loader, node, set_mode, weights

OTHER = "The sampler has other LoRAs than this node: the pad shows those of the sampler"
UNKNOWN = ["LoRA 1", "LoRA 2"]


def two_loaders() -> dict[str, tuple[str, dict]]:
    return {
        "first": loader(*LORAS[:2]),
        "second": loader(LORAS[2], LORAS[0]),
        "pad": weights(0.5, 0.5),
        "sampler": node("BlendedKSampler"),
    }


def test_the_samplers_adapters_are_shown_where_the_pads_are_others(front: FrontEnd) -> None:
    ids = build(
        front,
        two_loaders(),
        "first > pad.reward_loras",
        "second > sampler.reward_loras",
        "pad > sampler.preference",
    )
    has(front, ids["pad"], [NAMES[2], NAMES[0]], OTHER)
    set_mode(front, ids["sampler"], 4)  # alone, it still tells
    has(front, ids["pad"], [NAMES[2], NAMES[0]], OTHER)
    set_mode(front, ids["second"], 2)  # no adapters reach the sampler
    has(front, ids["pad"], NAMES[:2])


@pytest.mark.parametrize("own", ["", "first > pad.reward_loras"])
def test_through_schedules_regions_and_other_weights(front: FrontEnd, own: str) -> None:
    nodes = two_loaders() | {
        "early": node("PreferenceSchedule"),
        "left": node("RegionalPreference"),
        "late": node("PreferenceSchedule"),
    }
    ids = build(
        front,
        nodes,
        *([own] if own else []),
        "second > sampler.reward_loras",
        "pad > early.preference_start",
        "early > left.preference",
        "left > late.preference_end",
        "late > sampler.preference",
    )
    has(front, ids["pad"], [NAMES[2], NAMES[0]], OTHER if own else "")


def test_bypassed_and_muted_samplers_do_not_count_beside_others(front: FrontEnd) -> None:
    nodes = two_loaders() | {"another": node("KLScaleSampler")}
    ids = build(
        front,
        nodes,
        "first > sampler.reward_loras",
        "second > another.reward_loras",
        "pad > sampler.preference",
        "pad > another.preference",
    )
    has(front, ids["pad"], NAMES[:2])
    for mode in (2, 4):
        set_mode(front, ids["sampler"], mode)
        has(front, ids["pad"], [NAMES[2], NAMES[0]])
        set_mode(front, ids["sampler"], 0)
        has(front, ids["pad"], NAMES[:2])


def test_an_earlier_part_of_the_samplers_chain_is_not_another(front: FrontEnd) -> None:
    ids = build(
        front,
        two_loaders(),
        "first > pad.reward_loras",
        "first > second.reward_loras",
        "second > sampler.reward_loras",
        "pad > sampler.preference",
    )
    has(front, ids["pad"], [*NAMES[:2], NAMES[2], NAMES[0]])
    assert Pad(front, ids["pad"]).look()["message"] == ""


def test_adapters_of_another_node_are_not_known(front: FrontEnd) -> None:
    ids = build(
        front,
        two_loaders() | {"stack": node("RewardLoRAsFromStack")},
        "first > pad.reward_loras",
        "first > stack.reward_loras",
        "stack > sampler.reward_loras",
        "pad > sampler.preference",
    )
    has(front, ids["pad"], UNKNOWN)


@pytest.mark.parametrize(("mode", "said"), [(4, "bypassed"), (2, "muted")])
def test_weights_go_with_their_own_loader_where_another_takes_no_part(front: FrontEnd, mode: int, said: str) -> None:
    ids = build(
        front,
        {
            "first": loader(*LORAS),
            "second": loader(*LORAS[:2]),
            "before": weights(0.5, 0.2, 0.3),
            "after": weights(0.5, 0.5),
            "sampler": node("BlendedKSampler"),
        },
        "first > before.reward_loras",
        "first > second.reward_loras",
        "before > after.preference",
        "second > after.reward_loras",
        "second > sampler.reward_loras",
        "after > sampler.preference",
    )
    has(front, ids["before"], NAMES)
    has(front, ids["after"], NAMES[:2])
    set_mode(front, ids["first"], mode)
    has(front, ids["after"], NAMES[:2])
    Pad(front, ids["before"]).wait(f"look.message === 'first is {said}: these weights count as 0' && !look.isProblem")
    assert Pad(front, ids["after"]).look()["message"] == ""


@pytest.mark.parametrize(("mode", "said"), [(4, "bypassed"), (2, "muted")])
def test_a_loader_inside_a_chain_takes_no_part(front: FrontEnd, mode: int, said: str) -> None:
    """A bypassed loader hands on the one before it, a muted one cuts the chain. The weights of the last stay with it."""
    ids = build(
        front,
        {
            "first": loader(LORAS[0]),
            "second": loader(LORAS[1]),
            "third": loader(LORAS[2]),
            "one": weights(0.5),
            "two": weights(0.3),
            "three": weights(0.2),
            "sampler": node("BlendedKSampler"),
        },
        "first > second.reward_loras",
        "second > third.reward_loras",
        "first > one.reward_loras",
        "second > two.reward_loras",
        "third > three.reward_loras",
        "one > two.preference",
        "two > three.preference",
        "third > sampler.reward_loras",
        "three > sampler.preference",
    )
    for name, shown in zip(("one", "two", "three"), NAMES, strict=True):
        has(front, ids[name], [shown])
    set_mode(front, ids["second"], mode)
    has(front, ids["three"], NAMES[2:])
    Pad(front, ids["two"]).wait(f"look.message === 'second is {said}: these weights count as 0' && !look.isProblem")
    if said == "bypassed":
        has(front, ids["one"], NAMES[:1])


def test_more_weights_than_loaders_stop_the_run(front: FrontEnd) -> None:
    ids = build(
        front,
        {
            "loader": loader(*LORAS[:2]),
            "before": weights(0.5, 0.5),
            "after": weights(0.5),
            "sampler": node("BlendedKSampler"),
        },
        "loader > sampler.reward_loras",
        "before > after.preference",
        "after > sampler.preference",
    )
    has(front, ids["before"], NAMES[:2])
    last = Pad(front, ids["after"])
    last.wait("look.isProblem && look.message.startsWith('No Load Reward LoRAs is left for these weights')")
    last.set_number("weight_1", 0)
    last.wait("look.message === ''")
