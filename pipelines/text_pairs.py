"""The text encoders' part of adapter files, for a file that is baked of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from ..blending.plans import is_significant
from ..blending.updates import LowRank
from .adapter_files import AdapterFile

logger = logging.getLogger("diffusion_blend")

_ENDS = {
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".alpha": "alpha",
}


def text_pairs(
    files: Sequence[AdapterFile], coefficients: Sequence[float], is_unet: bool, several: bool
) -> dict[str, list[tuple[float, LowRank]]]:
    """The text encoders' pairs of all files, under kohya's names beside a UNet and diffusers' names beside a transformer.

    Args:
        files: opened with their text encoders' tensors.
        coefficients: of the files.
        is_unet: whether the base's denoiser is a UNet.
        several: whether the base has several text encoders.
    """
    layers: dict[str, list[tuple[float, LowRank]]] = {}
    for file, coefficient in zip(files, coefficients, strict=True):
        if not is_significant(coefficient):
            continue
        parts, others = _parts(file)
        for layer, part in parts.items():
            name = _kohya_text(layer, several) if is_unet else layer
            if not {"up", "down"} <= part.keys() or name.startswith("lora_te") != is_unet:
                others += 1
                continue
            pair = LowRank(part["down"].float(), part["up"].float().flatten(1))
            layers.setdefault(name, []).append((coefficient * _scale(file, layer, part), pair))
        if others:
            logger.warning(
                "adapter %s: %d text-encoder parts are not plain LoRA of this base's naming, and are left out",
                file.name,
                others,
            )
    return layers


def _parts(file: AdapterFile) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Layer -> its tensors, and the number of tensors that are no LoRA."""
    parts: dict[str, dict[str, Tensor]] = {}
    others = 0
    for key, tensor in file.texts.items():
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None:
            others += 1
        else:
            parts.setdefault(key.removesuffix(end), {})[_ENDS[end]] = tensor
    return parts, others


def _scale(file: AdapterFile, layer: str, part: dict[str, Tensor]) -> float:
    rank = part["down"].shape[0]
    if "alpha" in part:
        return float(part["alpha"]) / rank
    encoder, _, rest = layer.partition(".")
    return file.text_scalings[encoder].of(rest, rank) if encoder in file.text_scalings else 1.0


def _kohya_text(layer: str, several: bool) -> str:
    if layer.startswith("lora_te"):
        return layer
    encoder, _, rest = layer.partition(".")
    if rest.startswith("encoder.layers."):  # of a CLIP that transformers 5 made
        rest = f"text_model.{rest}"
    number = "2" if encoder.endswith("_2") else "1" if several else ""
    return f"lora_te{number}_{rest.replace('.', '_')}"
