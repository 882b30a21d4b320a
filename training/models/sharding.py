"""The frozen network in shares: each process keeps a part of the weights and gathers a block's weights when it runs.

This is torch's FSDP2 (``torch.distributed.fsdp.fully_shard``) for the base alone. Adapters are attached afterwards. They are
whole on every process, and their gradients are averaged as without shares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(network: Any, device: torch.device) -> None:
    """Split a network's frozen weights over the processes, block by block, in place.

    A process holds about 1 / N of the weights, and those of one block as long as it runs. Every process must run the network
    equally often, which the trainer does, also where only the first process uses the result. Predictions keep their bits.

    Args:
        network: a diffusers denoiser on the CPU, without adapters.
        device: this process's device.

    Raises:
        ValueError: there is only one process.
    """
    count = distributed.get_world_size() if distributed.is_initialized() else 1
    if count < 2:
        raise ValueError(
            "base.shard splits the base over several processes, and this is the only one: start the training with "
            "accelerate launch --num_processes N, or leave base.shard out"
        )
    mesh = init_device_mesh(device.type, (count,))
    network.requires_grad_(False)
    for part in network.children():
        if isinstance(part, torch.nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
