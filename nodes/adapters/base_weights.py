"""The base model's own weights, for the kinds of adapter that multiply them."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_patcher
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

    def __contains__(self, key: str) -> bool:
        path, _, attribute = key.rpartition(".")
        try:
            return getattr(self.model.model.get_submodule(path), attribute) is not None
        except AttributeError:
            return False

    def read(self, key: str) -> Tensor:
        """Return a weight, float32, on the model's load device.

        Args:
            key: name of the parameter, relative to ``model.model``.

        Raises:
            Unreadable: another extension stores the weight as integers, with scales that the host does not know.
        """
        self.used = True
        # ModelPatcher.get_key_patches would do this, but stops at the scales of the host's own quantised layers.
        weight, _, convert = comfy.model_patcher.get_key_weight(self.model.model, key)
        if key in self.model.backup:
            weight = self.model.backup[key].weight
        if key in self.model.hook_backup:
            weight = self.model.hook_backup[key][0]
        weight = self.model.object_patches.get(key, weight)
        weight = weight.to(self.model.load_device, copy=True)
        weight = weight if convert is None else convert(weight, inplace=True)
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise Unreadable(f"its kind needs the base's own weight, which this checkpoint stores as {kind}.")
        weight = weight.float()
        patches = self.model.patches.get(key)
        return comfy.lora.calculate_weight(patches, weight, key) if patches else weight


def patches_of(model: Patcher) -> tuple[Any, ...]:
    """Return what tells apart the states of a MODEL's weights: its patches, and the weights that it puts in place of others.

    Args:
        model: the host's ModelPatcher.
    """
    replaced = ((name, id(value)) for name, value in model.object_patches.items() if isinstance(value, Tensor))
    return (model.patches_uuid, *replaced)
