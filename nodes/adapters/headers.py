"""What the header of an adapter file says about its training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from .names import cleaned_name


def name_of(metadata: Mapping[str, str], file_stem: str) -> str:
    """Return the name to show: what the adapter was trained for, else the header's title, else the file's name.

    Args:
        metadata: ``diffusion_blend.reward`` of our trainer, ``modelspec.title`` (https://github.com/Stability-AI/ModelSpec).
        file_stem: the file's name without its ending.
    """
    for entry in ("diffusion_blend.reward", "modelspec.title"):
        name = cleaned_name(str(metadata.get(entry) or ""))
        if name:
            return name
    return cleaned_name(file_stem)


TEXT = "text_encoder"
"""How the parts of a header begin that belong to text encoders."""


def trained_scale(metadata: Mapping[str, str], keys: Iterable[str], *, text: bool = False) -> float | None:
    """Return the factor alpha / r of the training where only the header has it, None where it is unknown or in the tensors.

    diffusers writes PEFT's configuration as JSON under ``lora_adapter_metadata`` (diffusers/loaders/lora_base.py), with keys such
    as ``unet.lora_alpha``; with ``use_rslora`` the factor is alpha / sqrt(r). ComfyUI reads alpha from tensors only.

    Args:
        metadata: the file's header.
        keys: of the file's tensors.
        text: whether the factor of the text encoders is meant, and not that of the diffusion network.
    """
    if any(key.endswith(".alpha") for key in keys):
        return None
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata") or "{}")
        parts = {name.rpartition(".")[2]: value for name, value in settings.items() if name.startswith(TEXT) == text}
        alpha, rank = float(parts["lora_alpha"]), float(parts["r"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not (rank > 0 and math.isfinite(alpha)) or parts.get("alpha_pattern") or parts.get("rank_pattern"):
        return None  # patterns give some layers another factor
    return alpha / (math.sqrt(rank) if parts.get("use_rslora") else rank)
