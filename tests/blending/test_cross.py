"""Cross adapters: their gates, how they find their members, and what they repair to second order."""

from __future__ import annotations

import json

import pytest
import torch
from diffusion_blend.blending.cross import Crossed, cross_gates, find_pairs, is_cross, pair_problems
from diffusion_blend.blending.groups import CROSS, KEY, Group, fingerprint, parse_group
from diffusion_blend.blending.plans import Blend, EarlyBlend, Soup, Stochastic, unit_row
from diffusion_blend.blending.step_info import StepInfo

STEP = StepInfo(1, 10, 3, range(4))


def group(pair: tuple[str, str], member: int = 0, id_: str = "one", rewards: tuple[str, ...] = ("a x b",)) -> Group:
    return Group(CROSS, id_, member, rewards, pair, ("a", "b"))


def test_the_gate_is_four_times_the_product_and_0_in_the_corners() -> None:
    assert cross_gates((0.5, 0.5), [(0, 1)]) == (1.0,)
    assert cross_gates((0.2, 0.3, 0.5), [(0, 1), (2, 0), None]) == pytest.approx((0.24, 0.4, 0.0))
    for corner in range(3):
        assert cross_gates(unit_row(corner, 3), [(0, 1), (0, 2), (1, 2)]) == (0.0, 0.0, 0.0)


def test_only_the_row_of_the_soup_changes() -> None:
    coefficients, pairs = (0.25, 0.75), ((0, 1),)
    for planner in (Blend(coefficients), Stochastic(coefficients)):
        plain, crossed = planner(STEP), Crossed(planner, pairs)(STEP)
        assert crossed.mix == plain.mix
        assert crossed.gates == tuple(tuple((*gates, 0.0) for gates in row) for row in plain.gates)
    assert Crossed(Soup(coefficients), pairs)(STEP).gates == (((0.25, 0.75, 0.75),),)


def test_a_plan_in_two_parts_is_extended_in_both() -> None:
    early = EarlyBlend((0.25, 0.75), 0.3)
    late = StepInfo(8, 10, 3, range(4))
    plain, crossed = early(late), Crossed(early, ((0, 1),))(late)
    assert crossed.gates == (((0.25, 0.75, 0.75),),)
    assert crossed.extrapolation == plain.extrapolation is not None
    assert crossed.without_residual is not None and plain.without_residual is not None
    assert crossed.without_residual.residual_mix == plain.without_residual.residual_mix
    assert {len(gates) for row in crossed.without_residual.gates for gates in row} == {3}


def test_members_are_found_by_their_content() -> None:
    tensors = [{"x": torch.full((2, 2), float(i), dtype=torch.bfloat16), "alpha": torch.tensor(1.0)} for i in range(3)]
    marks = [fingerprint(own) for own in tensors]
    assert fingerprint(dict(reversed(tensors[0].items()))) == marks[0]
    assert len({*marks, fingerprint({"y": tensors[0]["x"], "alpha": tensors[0]["alpha"]})}) == 4
    groups = [group((marks[0], marks[2])), group((marks[1], "gone"))]
    assert find_pairs(groups, marks) == [(0, 2), None]
    assert find_pairs(groups[:1], list(reversed(marks))) == [(2, 0)]


def test_what_is_missing_is_said() -> None:
    rewards = ("a x b", "a x c")
    whole = [group(("1", "2"), 0, rewards=rewards), group(("1", "3"), 1, rewards=rewards)]
    assert pair_problems(whole, ["x", "y"], [(0, 1), (0, 2)]) == []
    said = pair_problems(whole[:1], ["x"], [None])
    assert said[0] == "x is the cross adapter of a and b, which are not both there, so it has no effect."
    assert said[1] == "The group of cross adapters has more files, which are not there: a x c."
    twice = pair_problems([group(("1", "2")), group(("1", "2"), id_="two")], ["x", "y"], [(0, 1), (0, 1)])
    assert twice == ["Several cross adapters are of the same pair (x, y), and their effects add up."]


def test_the_header_of_a_cross_adapter() -> None:
    entry = {
        "kind": CROSS,
        "id": "one",
        "member": 0,
        "rewards": ["a x b"],
        "pair": ["1", "2"],
        "pair_names": ["a", "b"],
    }
    found = parse_group({KEY: json.dumps(entry)})
    assert found == group(("1", "2"))
    assert is_cross(found) and not is_cross(None) and not is_cross(Group("stacked", "one", 0, ("a",)))
    with pytest.raises(ValueError, match="does not name its two adapters"):
        parse_group({KEY: json.dumps(entry | {"pair": ["1"]})})


def test_of_a_quadratic_network_one_cross_adapter_is_exact_for_every_preference() -> None:
    """f(g) = (u . g)^2: the blend is w u_1^2 + (1 - w) u_2^2, and the soup misses w (1 - w) (u_1 - u_2)^2 of it."""
    u = torch.tensor([1.7, -0.4], dtype=torch.float64)
    held = float((u[0] - u[1]) ** 2) / 4  # what the cross adapter adds with gate 1
    for w in (0.0, 0.1, 0.5, 0.8, 1.0):
        (gates,) = Crossed(Soup((w, 1 - w)), ((0, 1),))(STEP).gates[0]
        blend = w * float(u[0] ** 2) + (1 - w) * float(u[1] ** 2)
        assert float(u @ torch.tensor(gates[:2], dtype=torch.float64)) ** 2 + gates[2] * held == pytest.approx(blend)
