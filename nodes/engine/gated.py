"""The host's network with the side path beside it: predictions for rows of gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.plans import Gates
from ...blending.side_path import SidePath
from .calls import ModelCall
from .fused_layers import layers_called
from .memory import NetworkMemory

Row = tuple[Gates, ...]
"""The gates of all images of a call: one for the whole batch, or one for each image."""

CANDIDATE = "diffusion_blend_candidate"
"""The entry of a call's transformer_options for samplers that carry several candidates of an image."""


class GatedNetwork:
    """A network, its side path, and what it holds from call to call for each row.

    Args:
        bank: the adapters' factors.
        network: the host's BaseModel.
    """

    def __init__(self, bank: AdapterBank, network: Any) -> None:
        self.path = SidePath(bank)
        self._memory = NetworkMemory(network)

    def remove(self) -> None:
        """Remove every hook, and everything that the run's calls left in the network."""
        self.path.remove()
        self._memory.close()

    def predict(self, call: ModelCall, rows: list[Row]) -> tuple[Tensor, ...]:
        """Predict for each row of gates in one call.

        Returns:
            K predictions, float32[N, ...].
        """
        if len(rows) == 1:
            return (self._run(call, rows, call.gates_of_batch(rows[0])),)
        gates = tuple(gates for row in rows for gates in call.gates_of_each(row))
        return self._run(call, rows, gates).chunk(len(rows))

    def predict_alike(self, call: ModelCall, gates: Gates, images: int) -> Tensor:
        """Predict with the same gates for each image, by the code for images with gates of their own, float32[N, ...]."""
        row = (gates,) * images
        return self._run(call, [row], call.gates_of_batch(row))

    def predict_one_by_one(self, call: ModelCall, row: Row) -> Tensor:
        """Predict for a row with gates per image by a call for each of its gates, float32[N, ...]."""
        chosen: Tensor | None = None
        for gates in dict.fromkeys(row):
            prediction = self.predict(call, [(gates,)])[0]
            which = torch.tensor([own == gates for own in call.gates_of_batch(row)], device=prediction.device)
            which = which.view(-1, *[1] * (prediction.ndim - 1))
            chosen = prediction if chosen is None else torch.where(which, prediction, chosen)
        assert chosen is not None
        return chosen

    def _run(self, call: ModelCall, rows: list[Row], gates: Row) -> Tensor:
        key = (tuple(rows), call.transformer_options.get(CANDIDATE))
        with self._memory.of(key, call.patches), layers_called(self.path.hooked), self.path.gated(gates):
            return call(rows)
