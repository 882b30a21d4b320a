"""Begins a training at an existing LoRA adapter."""

from __future__ import annotations

import torch

from ..blending.adapters import LowRank
from ..pipelines.adapter_files import Adapter
from .config import AdapterConfig
from .models.protocol import TextToImageModel


@torch.no_grad()
def begin_with(model: TextToImageModel, start: Adapter, lora: AdapterConfig) -> None:
    """Set the fresh adapter to an existing one's update, ``up @ down`` of every layer.

    Layers that the file does not change stay as they are, and so do ranks that the file does not have.

    Args:
        model: with a fresh adapter.
        start: fitted to the model's network.
        lora: the fresh adapter's shape.

    Raises:
        ValueError: the file changes a layer that is not trained, is no plain LoRA, or has a larger rank.
    """
    trained = model.trainable()
    for layer, updates in start.update.items():
        down, up = f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"
        if down not in trained:
            raise ValueError(
                f"adapter.start changes the layer {layer!r}, which adapter.targets {lora.targets} do not train"
            )
        if len(updates) != 1 or not isinstance(updates[0], LowRank):
            raise ValueError(
                f"adapter.start: the update of {layer!r} is not a plain LoRA, with which a training can begin"
            )
        update = updates[0]
        rank = len(update.down)
        if rank > lora.rank:
            raise ValueError(
                f"adapter.start has rank {rank} in {layer!r}: set adapter.rank to {rank} or more, not {lora.rank}"
            )
        trained[down][:rank].copy_(update.down.view_as(trained[down][:rank]))
        wanted = trained[up][:, :rank]
        wanted.copy_((update.up * lora.rank / lora.alpha).view_as(wanted))
