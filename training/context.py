"""What every part of a training run shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..rewards.protocol import Reward, weighted_sum
from .config import TrainConfig
from .models.protocol import TextToImageModel
from .policy import PolicySteps, has_float64
from .processes import Processes
from .progress import Progress
from .prompt_table import PromptTable
from .randomness import keyed_generator
from .reward_mix import RewardMix
from .stacking import StackedPrompts


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
        reward_mix: the weights and the normalization of the trained reward.
        progress: of the present iteration.
    """

    config: TrainConfig
    model: TextToImageModel
    steps: PolicySteps
    prompts: PromptTable
    rewards: Mapping[str, Reward]
    limited_rewards: Mapping[str, Reward]
    processes: Processes
    reward_mix: RewardMix
    progress: Progress = field(default_factory=Progress)

    def sampling_steps(self, iteration: int) -> PolicySteps:
        """The coefficients with which an iteration's images are sampled.

        With ``sampling.window_steps`` only a window of the run's noisy steps is noisy, at a place drawn for the iteration.
        A step's coefficients do not depend on the place, so `steps` describes the recorded steps of every iteration.
        """
        sampling, noisy = self.config.sampling, self.steps.noisy.tolist()
        if not sampling.window_steps or sampling.window_steps >= len(noisy):
            return self.steps
        places = len(noisy) - sampling.window_steps + 1
        first = int(torch.randint(places, (1,), generator=keyed_generator(self.seed, "window", iteration)))
        window = noisy[first : first + sampling.window_steps]
        return self.model.policy_steps(sampling.steps, sampling.eta, window)

    def preferences(self, rows: Tensor) -> Tensor | None:
        """The preference of each image, float64[B, m], where the adapters are trained to be stacked; otherwise None."""
        return self.prompts.preferences(rows) if isinstance(self.prompts, StackedPrompts) else None

    def reward_weights(self, rows: Tensor) -> Mapping[str, float | Tensor]:
        """The weight of every reward for images of these rows of the prompt table: numbers, or float64[B] where the adapters
        are trained to be stacked and every image has its own preference."""
        weights, preferences = self.reward_mix.weights, self.preferences(rows)
        if preferences is None:
            return weights
        return {name: weight * preferences[:, i] for i, (name, weight) in enumerate(weights.items())}

    def trained_reward(self, scores: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """The trained reward float64[B] of images of these rows of the prompt table, with the scores' gradient."""
        return weighted_sum(self.reward_mix.terms(scores), self.reward_weights(rows))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.model.device

    @property
    def exact_device(self) -> torch.device:
        """Where float64 numbers are: the network's device, or the CPU where the device has no float64 (Apple's GPUs)."""
        return self.device if has_float64(self.device) else torch.device("cpu")

    @property
    def images_per_iteration(self) -> int:
        """Images of one iteration, over all processes."""
        return self.config.sampling.samples * self.processes.count
