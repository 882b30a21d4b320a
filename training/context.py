"""What every part of a training run shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..rewards.protocol import Reward
from .config import TrainConfig
from .ddim import DdimSteps
from .models.protocol import TextToImageModel
from .processes import Processes
from .prompt_table import PromptTable


@dataclass(frozen=True)
class RunContext:
    """One training run's model, sampler, prompts, rewards, processes and settings.

    Attributes:
        config: the settings.
        model: the model that is trained; its base is the same network without the adapter.
        steps: the sampler's coefficients.
        prompts: the encoded prompts.
        rewards: the trained reward's terms by name, as they were given.
        limited_rewards: the same rewards with a time limit; their failures name the reward.
        processes: this process among its peers.
    """

    config: TrainConfig
    model: TextToImageModel
    steps: DdimSteps
    prompts: PromptTable
    rewards: Mapping[str, Reward]
    limited_rewards: Mapping[str, Reward]
    processes: Processes

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.model.device

    @property
    def images_per_iteration(self) -> int:
        """Images of one iteration, over all processes."""
        return self.config.sampling.samples * self.processes.count
