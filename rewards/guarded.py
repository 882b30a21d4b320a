"""Calls of a reward that cannot hang or break a run without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool

import torch
from torch import Tensor

from .protocol import Reward


class RewardFailed(RuntimeError):
    """A reward raised something, or took longer than it may; nothing of the iteration was kept."""


@dataclass(frozen=True)
class Guarded:
    """A reward whose failures name it, and whose calls end after a while.

    Args:
        name: for messages.
        reward: what is called.
        limit: seconds a call may take; 0 lets it take as long as it likes.
    """

    name: str
    reward: Reward
    limit: float

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of the reward, float[B].

        Raises:
            RewardFailed: it raised (what, is the cause), or took longer than ``limit``.
        """
        try:
            return self._in_time(images, prompts) if self.limit else self.reward(images, prompts)
        except RewardFailed:
            raise
        except Exception as error:
            raise RewardFailed(
                f"reward {self.name!r} raised {type(error).__name__}: {error}. The last checkpoint is untouched: mend the "
                "reward, then go on with --resume true"
            ) from error

    def _in_time(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Call in a thread that is left behind when it is late: Python cannot end one, but a waiting one does not keep the
        process from ending."""
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
        gradient = torch.is_grad_enabled()

        def call() -> Tensor:
            # Both are settings of a thread; device -1 chooses none.
            with torch.set_grad_enabled(gradient), torch.cuda.device(device):
                return self.reward(images, prompts)

        with ThreadPool(1) as pool:  # its end does not wait for the thread
            result = pool.apply_async(call)
            result.wait(self.limit)
            if not result.ready():
                raise RewardFailed(
                    f"reward {self.name!r} has not answered after {self.limit:g} s (reward_timeout) for {len(prompts)} images. "
                    "The last checkpoint is untouched: mend the reward or raise reward_timeout (0 is no limit), then go on "
                    "with --resume true"
                )
            return result.get()


def guard(rewards: Mapping[str, Reward], limit: float) -> dict[str, Reward]:
    """The same rewards, each guarded.

    Args:
        rewards: by name.
        limit: seconds a call may take, 0 for no limit.
    """
    return {name: Guarded(name, reward, limit) for name, reward in rewards.items()}
