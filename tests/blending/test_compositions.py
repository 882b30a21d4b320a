"""LoRA Composite and LoRA Switch."""

from __future__ import annotations

from collections import Counter

import pytest
from diffusion_blend.blending.compositions import Composite, Switch
from diffusion_blend.blending.plans import Blend, unit_row
from diffusion_blend.blending.step_info import StepInfo


def test_composite_is_a_blend_with_equal_weights_of_the_adapters_in_use() -> None:
    step = StepInfo(3, 20)
    assert Composite((0.9, 0.0, 0.1))(step) == Blend((0.5, 0.0, 0.5))(step)
    assert Composite((0.2, 0.3, 0.5))(step) == Blend((1 / 3, 1 / 3, 1 / 3))(step)
    assert len(Composite((0.2, 0.3, 0.5))(step).gates) == 3  # one call for each, none of the base
    assert Composite((0.0, 1.0))(step) == Blend((0.0, 1.0))(step)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_switch_takes_one_adapter_at_a_time_in_a_cycle(block: int) -> None:
    planner = Switch((0.7, 0.0, 0.2, 0.1), block)
    plans = [planner(StepInfo(i, 30)) for i in range(30)]
    assert all(plan.mix == (1.0,) and len(plan.gates) == 1 for plan in plans)
    rows = [plan.gates[0][0] for plan in plans]
    cycle = [unit_row(i, 4) for i in (0, 2, 3)]
    assert rows[: 3 * block] == [row for row in cycle for _ in range(block)]
    assert rows[3 * block :] == rows[: -3 * block]  # periodic
    if 30 % (3 * block) == 0:  # whole cycles use every adapter equally, whatever its weight
        assert set(Counter(rows).values()) == {10}


def test_one_adapter_alone_is_that_adapter() -> None:
    for index in range(7):
        assert Switch((0.0, 0.4), 2)(StepInfo(index, 7)).gates == ((unit_row(1, 2),),)


@pytest.mark.parametrize("kind", [Composite, Switch])
def test_without_an_adapter_there_is_nothing_to_compose(kind: type) -> None:
    with pytest.raises(ValueError, match="use no adapter"):
        kind((0.0, 0.0))


def test_a_block_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="is 0 steps: it must be at least 1"):
        Switch((1.0, 1.0), 0)
