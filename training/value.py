"""The value function V(x_t, t, prompt), what a state adds to the return that its prompt makes one expect, and its regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from .buffer import Transitions
from .context import RunContext
from .randomness import keyed_generator

_TIME_FEATURES = 32
_LARGEST_SIDE = 16
_MOST_FRAMES = 4


class ValueFunction(nn.Module):
    """A small MLP on the (pooled) latent, the prompt's features and the timestep.

    Its output is ``mean + std * MLP``, with the mean and standard deviation of the first values it saw, and the
    MLP's last layer starts at 0: at first it predicts their mean everywhere, in any unit of the reward.
    """

    return_mean: Tensor
    return_std: Tensor

    def __init__(self, latent_shape: Sequence[int], prompt_features: int, hidden: int) -> None:
        """Build the network; weights from torch's global generator.

        Args:
            latent_shape: channels, height, width, or channels, frames, height, width. Sides above 16 are average-pooled to
                16, and frames above 4 to 4.
            prompt_features: length of a prompt's feature vector.
            hidden: width of the two hidden layers.
        """
        super().__init__()
        channels, *frames, height, width = latent_shape
        pooled: Any = [min(count, _MOST_FRAMES) for count in frames] + [
            min(side, _LARGEST_SIDE) for side in (height, width)
        ]
        self.pool = nn.AdaptiveAvgPool3d(pooled) if frames else nn.AdaptiveAvgPool2d(pooled)
        inputs = channels * math.prod(pooled) + prompt_features + _TIME_FEATURES
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("return_mean", torch.tensor(float("nan")))
        self.register_buffer("return_std", torch.tensor(float("nan")))

    def scale_to(self, values: Tensor) -> None:
        """Take the unit from the first values, float[N]; later calls change nothing."""
        if bool(self.return_mean.isnan()):
            self.return_mean.copy_(values.mean())
            self.return_std.copy_(values.std().clamp(min=1e-6) if len(values) > 1 else torch.tensor(1.0))

    def forward(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        """Expected value, float32[B], for latents float[B, C, (F,) H, W], timesteps int64[B], features float[B, F]."""
        time = get_timestep_embedding(timesteps, _TIME_FEATURES)
        inputs = torch.cat([self.pool(latents.float()).flatten(1), features.float(), time], dim=1)
        return self.return_mean + self.return_std * self.layers(inputs).squeeze(1)


class ValueRegression:
    """Fits a value function to the returns in the buffer, less what their prompts make one expect."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.config = context, context.config.value
        features = context.prompts.conditioning(torch.tensor([0])).features.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.value = ValueFunction(context.model.latent_shape, features, self.config.hidden).to(context.device)
        self.optimizer = torch.optim.AdamW(self.value.parameters(), lr=self.config.learning_rate)

    @torch.no_grad()
    def with_baseline(self, steps: Transitions, expected: Tensor) -> Transitions:
        """Denoising steps with the return that is expected in their states: of the prompt, plus V of the state.

        It makes the advantage, return minus baseline, an unbiased estimate only for steps whose returns the value function has
        not been fitted to. Only its unit is taken from the first steps' returns.

        Args:
            steps: N of them.
            expected: the return that each step's prompt makes one expect, from other images, float64[N].
        """
        self.value.scale_to(steps.returns - expected)
        parts = torch.arange(len(steps)).split(self.config.batch)
        values = torch.cat([self._predicted(steps[rows]).cpu().double() for rows in parts])
        return replace(steps, baseline=expected + values)

    def fit(self, buffer: Transitions, expected: Tensor, iteration: int) -> float:
        """Make one iteration's updates.

        Args:
            buffer: N steps.
            expected: see `with_baseline`.
            iteration: decides the rows of each update.

        Returns:
            The mean squared error of the last update, reward units squared.
        """
        error = 0.0
        for update in range(self.config.updates):
            rows = self._rows(len(buffer), iteration, update)
            loss = self._loss(buffer[rows], expected[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.context.processes.average_gradients(self.value.parameters())
            self.optimizer.step()
            error = float(loss.detach()) * float(self.value.return_std) ** 2
        return self.context.processes.mean({"value_loss": error})["value_loss"]

    def _rows(self, buffered: int, iteration: int, update: int) -> Tensor:
        """This process's rows of the buffer for one update."""
        processes = self.context.processes
        order = torch.randperm(buffered, generator=keyed_generator(self.context.seed, "value", iteration, update))
        return order[: self.config.batch * processes.count].chunk(processes.count)[processes.rank]

    def _loss(self, batch: Transitions, expected: Tensor) -> Tensor:
        """Mean squared error in units of the returns' spread, so that the learning rate fits any reward."""
        rest = (batch.returns - expected).to(self.context.device, torch.float32)
        return ((self._predicted(batch) - rest) / self.value.return_std).square().mean()

    def _predicted(self, batch: Transitions) -> Tensor:
        """The value of each step's state, float32[B], on the network's device."""
        device = self.context.device
        timesteps = self.context.steps.timesteps[batch.step].to(device)
        features = self.context.prompts.conditioning(batch.prompt).features.to(device)
        return self.value(batch.latents.to(device), timesteps, features)

    def state_dict(self) -> dict[str, Any]:
        """The state of the value function and of its optimizer."""
        return {"value": self.value.state_dict(), "value_optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.value.load_state_dict(saved["value"])
        self.optimizer.load_state_dict(saved["value_optimizer"])
