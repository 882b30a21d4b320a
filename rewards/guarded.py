"""Calls a reward with a time limit and reports its failures by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from threading import TIMEOUT_MAX

import torch
from torch import Tensor

from .protocol import Reward


class RewardFailed(RuntimeError):
    """A reward raised an error or exceeded its time limit. Nothing of the iteration was stored."""


@dataclass(frozen=True)
class Guarded:
    """A reward with a time limit, whose failures name it.

    Args:
        name: for messages.
        reward: the reward.
        limit: seconds that a call may take; 0 for no limit.
    """

    name: str
    reward: Reward
    limit: float

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the scores, float[B].

        Raises:
            RewardFailed: the reward raised an error, which is the cause, or exceeded its limit.
        """
        try:
            return self._in_time(images, prompts) if self.limit else self.reward(images, prompts)
        except RewardFailed:
            raise
        except Exception as error:
            raise RewardFailed(
                f"reward {self.name!r} raised {type(error).__name__}: {error}. The last checkpoint is untouched: fix the "
                "reward, then go on with --resume true"
            ) from error

    def _in_time(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Call in a thread and stop waiting for it at the limit.

        Python cannot end a thread, but a waiting daemon thread does not keep the process from ending.
        """
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
        gradient = torch.is_grad_enabled()

        def call() -> Tensor:
            # Both settings belong to a thread. Device -1 chooses none.
            with torch.set_grad_enabled(gradient), torch.cuda.device(device):
                return self.reward(images, prompts)

        with ThreadPool(1) as pool:  # leaving the block does not wait for the thread
            result = pool.apply_async(call)
            result.wait(min(self.limit, TIMEOUT_MAX))
            if not result.ready():
                raise RewardFailed(
                    f"reward {self.name!r} has not answered after {self.limit:g} s (reward_timeout) for {len(prompts)} images. "
                    "The last checkpoint is untouched: fix the reward or raise reward_timeout (0 is no limit), then go on "
                    "with --resume true"
                )
            return result.get()


def guard(rewards: Mapping[str, Reward], limit: float) -> dict[str, Reward]:
    """Give every reward a time limit.

    Args:
        rewards: by name.
        limit: seconds that a call may take; 0 for no limit.
    """
    return {name: Guarded(name, reward, limit) for name, reward in rewards.items()}
