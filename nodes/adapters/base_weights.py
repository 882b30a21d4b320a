"""The base model's own weights, for the kinds of adapter that multiply them."""

from __future__ import annotations

import comfy.lora
from comfy.model_patcher import get_key_weight
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
        self._names: frozenset[str] | None = None

    def __contains__(self, key: str) -> bool:
        if self._names is None:
            self._names = frozenset(self.model.model_state_dict())
        return key in self._names

    def read(self, key: str) -> Tensor:
        """Return a weight, float32, on the model's load device.

        Args:
            key: name of the parameter, relative to ``model.model``.

        Raises:
            Unreadable: another extension stores the weight as integers, with scales that the host does not know.
        """
        self.used = True
        # Like the host's `get_key_patches`, which cannot list the weights of a quantised network.
        weight, _, convert = get_key_weight(self.model.model, key)
        if key in self.model.backup:
            weight = self.model.backup[key].weight
        if key in self.model.hook_backup:
            weight = self.model.hook_backup[key][0]
        weight = weight.to(self.model.load_device, copy=True)
        if convert is not None:
            weight = convert(weight, inplace=True)
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise Unreadable(f"its kind needs the base's own weight, which this checkpoint stores as {kind}.")
        weight, patches = weight.float(), self.model.patches.get(key)
        return comfy.lora.calculate_weight(patches, weight, key) if patches else weight
