"""A quantised base: bitsandbytes through diffusers, for the transformer and the large text encoders."""

from __future__ import annotations

from typing import Any

import torch

LARGE_PARTS = ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")


def quantisation_config(kind: str, dtype: torch.dtype) -> Any:
    """diffusers' configuration of a quantised pipeline.

    Args:
        kind: ``int8`` or ``nf4`` (the 4-bit type of QLoRA, Dettmers et al. 2023, arXiv 2305.14314).
        dtype: in which a layer computes after its weight is expanded.
    """
    from diffusers import PipelineQuantizationConfig

    options: dict[str, Any] = (
        {"load_in_8bit": True}
        if kind == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    )
    return PipelineQuantizationConfig(
        quant_backend=f"bitsandbytes_{8 if kind == 'int8' else 4}bit",
        quant_kwargs=options,
        components_to_quantize=list(LARGE_PARTS),
    )


def placed(module: Any, device: torch.device) -> Any:
    """Move a module to a device. A quantised module stays where diffusers put it, because 8-bit weights cannot move."""
    return module if getattr(module, "quantization_method", None) is not None else module.to(device)
