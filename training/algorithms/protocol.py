"""What the trainer asks of an algorithm."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ..context import RunContext


class Algorithm(Protocol):
    """One way to learn from a reward. A class of this form and its entry in `ALGORITHMS` make an algorithm."""

    has_kl_penalty: ClassVar[bool]
    """Whether the adapter's file carries the KL weight that it was trained with."""

    needs_reward_gradient: ClassVar[bool]
    """Whether every trained reward has to be differentiable."""

    def __init__(self, context: RunContext) -> None: ...

    def iterate(self, iteration: int) -> dict[str, float]:
        """Collect one iteration's data, credit it and update the adapter.

        Args:
            iteration: which, from 0.

        Returns:
            Figures for the log: ``reward``, ``reward_std``, ``reward/<name>``, ``diversity``, and the algorithm's own.

        Raises:
            TrainingCollapsed: the loss or the gradient is not finite.
            RewardFailed: a reward raised an error or exceeded its time limit.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the adapter: tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...
