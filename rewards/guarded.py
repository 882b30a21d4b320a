"""Calls a reward, with a time limit or without one, and reports its failures by name."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import TIMEOUT_MAX

import torch
from torch import Tensor

from ..artifacts.command_line import CommandFailed
from .protocol import Reward

RESUME = "The last checkpoint is untouched: fix the reward, then go on with --resume true"
"""What the message of a training run advises."""


class RewardFailed(CommandFailed, RuntimeError):
    """A reward raised an error or exceeded its time limit. The scores of that call were not stored."""


@dataclass(frozen=True)
class Guarded:
    """A reward whose failures name it, perhaps with a time limit.

    Args:
        name: for messages.
        reward: the reward.
        limit: seconds that a call may take; 0 for no limit.
        advice: how the user goes on after a failure.
    """

    name: str
    reward: Reward
    limit: float = 0
    advice: str = RESUME

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
                f"reward {self.name!r} raised {type(error).__name__}: {error}{_place(error)}. {self.advice}"
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


def _place(error: Exception) -> str:
    """The last line of the reward's own code that ran, leaving out libraries; empty where Python does not know it."""
    libraries = ("multiprocessing", "site-packages")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not any(name in Path(frame.filename).parts for name in libraries)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def guard(rewards: Mapping[str, Reward], limit: float = 0, advice: str = RESUME) -> dict[str, Reward]:
    """Make every reward report its failures by name.

    Args:
        rewards: by name.
        limit: seconds that a call may take; 0 for no limit.
        advice: how the user goes on after a failure.
    """
    return {name: Guarded(name, reward, limit, advice) for name, reward in rewards.items()}
