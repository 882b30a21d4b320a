"""Rewards for tests that run the command in a process of its own."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Ten times the excess of red over green and blue, plus a little noise from each global random generator.

    The file ``COUNT_IN`` counts the calls. Call number ``KILL_AT`` kills the process, as a power cut would. Call number
    ``FAIL_AT`` fails as ``FAIL_BY`` says, after it has drawn its random numbers.
    """
    calls = _calls(os.environ.get("COUNT_IN"))
    if calls and calls == int(os.environ.get("KILL_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    noise = (
        torch.rand(len(images)) * 0.1 + random.random() * 0.1
    )  # a resumed run must also restore the global generators
    if calls and calls == int(os.environ.get("FAIL_AT", "0")):
        return _failure(os.environ["FAIL_BY"], images)
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2)) + noise


def _calls(counter: str | None) -> int:
    """Count this call in the file, over all processes; returns the count, or 0 without a file."""
    if not counter:
        return 0
    file = Path(counter)
    calls = len(file.read_text()) + 1 if file.exists() else 1
    file.write_text("x" * calls)
    return calls


def _failure(kind: str, images: Tensor) -> Any:
    """Fail in one of the ways of a broken reward."""
    if kind == "raises":
        raise RuntimeError("out of order")
    if kind == "hangs":
        threading.Event().wait()
    return {
        "nan": torch.full((len(images),), float("nan")),
        "inf": torch.full((len(images),), float("inf")),
        "shape": images.mean(),
        "text": "very red",
    }[kind]


def plain_redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same reward without noise."""
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def not_a_number(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that returns NaN."""
    return torch.full((len(images),), float("nan"))


def wrong_shape(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that returns one number for all images."""
    return images.mean()


def not_a_base() -> int:
    """A base function that returns no base model."""
    return 3


A_NUMBER = 3
