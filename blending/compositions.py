"""LoRA Composite and LoRA Switch, two training-free ways to compose adapters without preferences, as planners.

Zhong et al. 2024, "Multi-LoRA Composition for Image Generation", arXiv 2402.16843, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from .plans import Blend, Gates, Plan, is_significant, unit_row
from .step_info import StepInfo


@dataclass(frozen=True)
class Composite:
    """LoRA Composite: the mean of the adapters' predictions, with and without a prompt, at every step.

    ``D = 1/k sum_i D_i`` over the k adapters in use (eq. 5 with all weights 1, as in the paper): a blend with equal weights,
    whatever the preference.

    Args:
        coefficients: c, float[m]; an adapter with a coefficient other than 0 is in use.

    Raises:
        ValueError: no adapter is in use.
    """

    coefficients: Gates

    def __post_init__(self) -> None:
        _used(self.coefficients)

    def __call__(self, step: StepInfo) -> Plan:
        used = _used(self.coefficients)
        return Blend(tuple(1 / len(used) if i in used else 0.0 for i in range(len(self.coefficients))))(step)


@dataclass(frozen=True)
class Switch:
    """LoRA Switch: one adapter at a time, the next one after every ``block`` steps, in a cycle (eq. 4).

    Step t, from 0, uses adapter ``floor(t / block) mod k`` of the k adapters in use, in their order.

    Args:
        coefficients: c, float[m]; an adapter with a coefficient other than 0 is in use.
        block: steps before the next adapter; 5 in the paper's code.

    Raises:
        ValueError: no adapter is in use, or a block below 1.
    """

    coefficients: Gates
    block: int = 5

    def __post_init__(self) -> None:
        _used(self.coefficients)
        if self.block < 1:
            raise ValueError(f"a block of LoRA Switch is {self.block} steps: it must be at least 1")

    def __call__(self, step: StepInfo) -> Plan:
        used = _used(self.coefficients)
        active = used[step.index // self.block % len(used)]
        return Plan(((unit_row(active, len(self.coefficients)),),), (1.0,))


def _used(coefficients: Gates) -> list[int]:
    used = [i for i, c in enumerate(coefficients) if is_significant(c)]
    if not used:
        raise ValueError(f"coefficients {list(coefficients)} use no adapter: at least one must differ from 0")
    return used
