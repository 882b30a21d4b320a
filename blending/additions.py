"""Adds a low-rank product to a layer's output, in place where that is safe."""

from __future__ import annotations

import torch
from torch import Tensor


def add_linear(output: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
    """Compute ``output + hidden @ up``, [..., out] + [..., R] @ [R, out], in place where that is safe."""
    if _in_place(output, up) and output.is_contiguous():
        output.view(-1, output.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up)
        return output
    return output + (hidden @ up).to(output.dtype)


def add_convolution(output: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
    """As `add_linear` with channels second: [N, out, ...] + up^T [N, R, ...], a 1x1 convolution."""
    if _in_place(output, up):
        if output.is_contiguous():
            rows, channels = output.shape[:2]
            flat = hidden.reshape(rows, hidden.shape[1], -1)  # [N, R, H, W] -> [N, R, H W]
            output.view(rows, channels, -1).baddbmm_(up.t().expand(rows, -1, -1), flat)
            return output
        last = output.movedim(1, -1)  # channels_last memory is contiguous in this order
        if last.is_contiguous():
            add_linear(last, hidden.movedim(1, -1), up)
            return output
    return output + (hidden.movedim(1, -1) @ up).movedim(-1, 1).to(output.dtype)


def _in_place(output: Tensor, up: Tensor) -> bool:
    return output.dtype == up.dtype and not output.requires_grad and not torch.is_grad_enabled()
