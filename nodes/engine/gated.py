"""The host's network with the side path beside it: predictions for rows of gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.plans import Gates
from ...blending.side_path import SidePath
from .calls import ModelCall
from .compiler import pause_of_host
from .fused_layers import layers_called
from .memory import NetworkMemory
from .module_tree import ModuleTree
from .weight_reads import weights_read

Row = tuple[Gates, ...]
"""The gates of all images of a call: one for the whole batch, or one for each image."""

CANDIDATE = "diffusion_blend_candidate"
"""The entry of a call's transformer_options for samplers that carry several candidates of an image."""


class GatedNetwork:
    """A network, its side path, and what it holds from call to call for each row.

    Args:
        bank: the adapters' factors.
        network: the host's BaseModel.
        tree: its modules.
    """

    def __init__(self, bank: AdapterBank, network: Any, tree: ModuleTree) -> None:
        self.path = SidePath(bank, pause_of_host())
        self._network, self._tree, self._adapters = network, tree, bank.adapters
        self._memory = NetworkMemory(tree.stateful())

    def install(self) -> None:
        """Hook the network's layers."""
        self.path.install(self._network, self._tree.named())

    def remove(self) -> None:
        """Remove every hook, and everything that the run's calls left in the network."""
        self.path.remove()
        self._memory.close()

    @contextmanager
    def gated(self, row: Row) -> Iterator[None]:
        """Select gates for layers that are called outside of a model call."""
        with layers_called(self.path.hooked), self.path.gated(row):
            yield

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

    def weights_read(self, call: ModelCall, layers: Sequence[str]) -> set[str]:
        """Return which of these layers' weights a plain call reads."""
        modules = self._tree.named()
        with weights_read({name: modules[name] for name in layers if name in modules}) as read:
            self._run(call, [((0.0,) * self._adapters,)], ((0.0,) * self._adapters,))
        return read

    def _run(self, call: ModelCall, rows: list[Row], gates: Row) -> Tensor:
        inputs = call.inputs(rows)  # made first, because they may need gates of their own
        key = (tuple(rows), call.transformer_options.get(CANDIDATE))
        try:
            with self._memory.of(key, call.patches), layers_called(self.path.hooked):
                with self.path.gated(gates, call.x.device):
                    prediction = call(inputs)
                if self.path.exchange_bypassed():
                    raise _Repeat
                return prediction
        except _Repeat:  # the network's state is as it was before the call
            return self._run(call, rows, gates)


class _Repeat(Exception):
    """A call passed by layers with adapters."""
