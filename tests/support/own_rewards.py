"""Rewards for tests that run the command in a process of its own."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Ten times how much redder than green and blue an image is, with a little of everybody's randomness in it.

    With ``KILL_AT`` set to n and ``COUNT_IN`` to a file: the n-th call kills the process, as a power cut would.
    """
    counter = os.environ.get("COUNT_IN")
    if counter:
        calls = len(Path(counter).read_text()) + 1 if Path(counter).exists() else 1
        Path(counter).write_text("x" * calls)
        if calls == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
    noise = torch.rand(len(images)) * 0.1 + random.random() * 0.1  # the global generators must be resumed too
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2)) + noise


def plain_redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same without randomness."""
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def not_a_number(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that breaks."""
    return torch.full((len(images),), float("nan"))


def wrong_shape(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that returns one number for all images."""
    return images.mean()


def not_a_base() -> int:
    """A base of one's own that is none."""
    return 3


A_NUMBER = 3
