"""This process among those that share work: its device, and whether it reports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Worker:
    """One process. Processes know nothing of each other: they share the work by claims in a folder.

    Attributes:
        device: where the networks compute.
        is_first: whether this process shows progress and writes tables. Each launch has one such process.
    """

    device: torch.device
    is_first: bool

    @staticmethod
    def of_environment(environment: Mapping[str, str] = os.environ, gpus: int | None = None) -> Worker:
        """The process as torchrun, accelerate or Slurm started it; a process that was started alone is the first.

        Args:
            environment: variables; ``RANK`` and ``LOCAL_RANK``, or ``SLURM_PROCID`` and ``SLURM_LOCALID``.
            gpus: how many GPUs this machine has; by default torch is asked.
        """
        rank = int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))
        local = int(environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")))
        count = torch.cuda.device_count() if gpus is None else gpus
        if count == 0 or environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
            return Worker(torch.device("cpu"), rank == 0)
        return Worker(torch.device("cuda", local % count), rank == 0)
