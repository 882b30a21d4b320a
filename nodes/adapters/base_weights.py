"""The base model's own weights, for the kinds of adapter that multiply them."""

from __future__ import annotations

from typing import Any

import comfy.lora
from torch import Tensor

from ..host import Patcher


class Unreadable(ValueError):
    """A weight of the base whose numbers the host cannot give."""


class BaseWeights:
    """Weights of a MODEL as its sampling run has them: dequantised, with the host's patches applied.

    Args:
        model: the host's ModelPatcher. It is not changed.
    """

    def __init__(self, model: Patcher) -> None:
        self.model = model
        self.used = False
        self._parts: dict[str, list[Any]] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._all()

    def read(self, key: str) -> Tensor:
        """Return a weight, float32, on the model's load device.

        Args:
            key: name of the parameter, relative to ``model.model``.

        Raises:
            Unreadable: another extension stores the weight as integers, with scales that the host does not know.
        """
        self.used = True
        (weight, convert), *patches = self._all()[key]
        weight = convert(weight.to(self.model.load_device, copy=True), inplace=True)
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise Unreadable(f"its kind needs the base's own weight, which this checkpoint stores as {kind}.")
        weight = weight.float()
        return comfy.lora.calculate_weight(patches, weight, key) if patches else weight

    def _all(self) -> dict[str, list[Any]]:
        if self._parts is None:
            self._parts = self.model.get_key_patches()
        return self._parts
