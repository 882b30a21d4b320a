"""The linear stack at the end of two published reward models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_POSITIONS = (0, 2, 4, 6, 7)


class LinearStack(nn.Module):
    """Linear layers in - 1024 - 128 - 64 - 16 - 1 without activations (the published models were trained with dropout
    between them, which does nothing in use); keys ``layers.{0,2,4,6,7}`` as in the published files."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Build the layers with the sizes of ``state`` and load it.

        Raises:
            ValueError: the expected layers are not all there.
        """
        super().__init__()
        missing = [f"layers.{i}.weight" for i in _POSITIONS if f"layers.{i}.weight" not in state]
        if missing:
            raise ValueError(f"score head without {', '.join(missing)}: not the published file")
        self.layers = nn.ModuleDict()
        for i in _POSITIONS:
            outputs, inputs = state[f"layers.{i}.weight"].shape
            self.layers[str(i)] = nn.Linear(inputs, outputs)
        self.load_state_dict(dict(state))
        self.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Scores float[B] of features float[B, in]."""
        for layer in self.layers.values():
            features = layer(features)
        return torch.squeeze(features, 1)
