"""Image processors of reward networks with a gradient: values of the published processor, gradient of a smooth resize."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..artifacts.pictures import to_pil


class _SmoothGradient(torch.autograd.Function):
    """The first tensor's values with the second tensor's gradient."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:  # noqa: ARG004  (torch's signature)
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, gradient


def prepared(processor: Any, images: Tensor, device: torch.device) -> Tensor:
    """Pixels for a network, as its published processor prepares them.

    The processor rounds pictures to bytes before and after it resizes them, which has no gradient. The gradient is that of
    the same resize and normalisation without rounding (a straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).

    Args:
        processor: transformers' CLIPImageProcessor.
        images: float[B, 3, H, W] in 0..1.
        device: of the result.

    Returns:
        float32[B, 3, S, S]; it has a gradient where the images have one.
    """
    pictures = [to_pil(image) for image in images.detach().cpu()]
    exact = processor(images=pictures, return_tensors="pt")["pixel_values"].to(device)
    if not (torch.is_grad_enabled() and images.requires_grad):
        return exact
    return _SmoothGradient.apply(exact, smooth_pixels(processor, images.to(device)))  # pyright: ignore[reportReturnType]


def smooth_pixels(processor: Any, images: Tensor) -> Tensor:
    """Resize, crop and normalize as a CLIPImageProcessor does, but without rounding.

    Args:
        processor: its settings are used.
        images: float[B, 3, H, W] in 0..1.

    Returns:
        float[B, 3, S, S], differentiable.
    """
    height, width = images.shape[2:]
    edge = processor.size["shortest_edge"]
    size = (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)
    resized = functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    tall, wide = processor.crop_size["height"], processor.crop_size["width"]
    top, left = (size[0] - tall) // 2, (size[1] - wide) // 2
    cropped = resized[:, :, top : top + tall, left : left + wide]
    mean, std = (cropped.new_tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (cropped - mean) / std
