"""The value function V(x_t, t, prompt): what return to expect from here."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

_TIME_FEATURES = 32
_LARGEST_SIDE = 16


class ValueFunction(nn.Module):
    """A small MLP on the (pooled) latent, the prompt's features and the timestep.

    Its output is ``mean + std * MLP``, with the mean and standard deviation of the first returns it saw, and the
    MLP's last layer starts at 0: at first it predicts the mean return everywhere, whatever the reward's unit.
    """

    return_mean: Tensor
    return_std: Tensor

    def __init__(self, latent_shape: tuple[int, int, int], prompt_features: int, hidden: int) -> None:
        """Build the network; weights from torch's global generator.

        Args:
            latent_shape: channels, height, width; sides above 16 are average-pooled to 16.
            prompt_features: length of a prompt's feature vector.
            hidden: width of the two hidden layers.
        """
        super().__init__()
        channels, height, width = latent_shape
        self.pool = nn.AdaptiveAvgPool2d((min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE)))
        inputs = channels * min(height, _LARGEST_SIDE) * min(width, _LARGEST_SIDE) + prompt_features + _TIME_FEATURES
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("return_mean", torch.tensor(float("nan")))
        self.register_buffer("return_std", torch.tensor(float("nan")))

    def scale_to(self, returns: Tensor) -> None:
        """Take the unit from the first returns, float[N]; later calls change nothing."""
        if bool(self.return_mean.isnan()):
            self.return_mean.copy_(returns.mean())
            self.return_std.copy_(returns.std().clamp(min=1e-6) if len(returns) > 1 else torch.tensor(1.0))

    def forward(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        """Expected return, float32[B], for latents float[B, C, H, W], timesteps int64[B], features float[B, F]."""
        time = get_timestep_embedding(timesteps, _TIME_FEATURES)
        inputs = torch.cat([self.pool(latents.float()).flatten(1), features.float(), time], dim=1)
        return self.return_mean + self.return_std * self.layers(inputs).squeeze(1)
