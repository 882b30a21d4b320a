"""Counts the cost of the side path: FLOPs and bytes of one model call, for the base and for an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_costs(base: Any, blended: Any, conds: list[Any], latent: dict[str, Any]) -> dict[str, float]:
    """Count one call of the network, both guidance branches in it.

    torch's own counter counts the base's FLOPs. An adapter of rank r on a layer with n input rows takes ``2 n r (in + out)``
    FLOPs. It moves at least ``n (in + 2 out + 2 r) + r (in + out)`` numbers: it reads the input again, writes and reads the
    hidden state, reads and writes the output, and reads the factors.

    Args:
        base: the MODEL without a blend, loaded.
        blended: a MODEL that carries four adapters of equal rank.
        conds: positive and negative conditioning.
        latent: of the sampling.

    Returns:
        base_flops, base_bytes (weights), flops_per_adapter, bytes_per_adapter, adapter_bytes (all four's factors).
    """
    from nodes import common_ksampler

    bank = blended.get_additional_models()[0].model
    stacks = bank.stacks()
    network = base.model
    rows: dict[str, tuple[int, int, int, int]] = {}

    def note(name: str) -> Any:
        down, up = stacks[name].down, stacks[name].up

        def hook(_module: Any, _args: tuple[Any, ...], output: torch.Tensor) -> None:
            channels = 1 if down.ndim > 2 else -1
            positions = output.numel() // output.shape[channels]
            rank, outputs = up.shape
            rows[name] = (positions, down.numel() // rank, outputs, rank)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(note(name)) for name in stacks]
    try:
        with FlopCounterMode(display=False) as counter:
            common_ksampler(base, 1, 1, 7.0, "euler", "normal", *conds, latent)
    finally:
        for handle in handles:
            handle.remove()
    size = next(iter(bank.parameters())).element_size()
    flops = sum(2 * n * r * (inputs + outputs) for n, inputs, outputs, r in rows.values())
    numbers = sum(
        n * (inputs + 2 * outputs + 2 * r / 4) + r / 4 * (inputs + outputs) for n, inputs, outputs, r in rows.values()
    )
    return {
        "base_flops": counter.get_total_flops(),
        "base_bytes": sum(parameter.nbytes for parameter in network.diffusion_model.parameters()),
        "flops_per_adapter": flops / 4,
        "bytes_per_adapter": numbers * size,
        "adapter_bytes": sum(tensor.nbytes for tensor in [*bank.parameters(), *bank.buffers()]),
    }
