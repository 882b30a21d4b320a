"""What of an adapter file is applied to a model, what is skipped and why, in words for the artist."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .endings import missing_half, stem
from .files import RewardLoRA
from .headers import trained_scale

TEXT_ENCODER = re.compile(
    r"(lora_te\d*_|lora_prior_te_|text_encoders?\d*[._]|text_encoder_\d+\.|text_model\.|clip_[lgh][._]|t5xxl[._]|te\d*[._]"
    r"|cond_stage_model\.|conditioner\.|bundle_emb|base_model\.model\.text_model\.)"
)
"""How the keys of text-encoder weights and of embeddings begin."""

LEAST_SHARE = 0.1
"""The least share of a file's layers that must fit: below it, the file is for another model."""


@dataclass
class Report:
    """What happened to the layers of one adapter file.

    Args:
        adapter: the file.
        model: the architecture's name.
        place: what the layers belong to, in words.
    """

    adapter: RewardLoRA
    model: str
    place: str = "this model"
    kinds: Counter[str] = field(default_factory=Counter)  # kind -> parts of the model that it changes
    absent: list[str] = field(default_factory=list)  # layers that the model does not have
    misshapen: list[tuple[str, str]] = field(default_factory=list)  # layers of another shape, and how
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # layers whose weight the host cannot give, and why
    second: list[str] = field(default_factory=list)  # keys of second updates of a layer
    unread: list[str] = field(default_factory=list)  # keys from which nothing is read
    spread: list[str] = field(default_factory=list)  # layers whose DoRA scale lacks its second axis
    other_axes: list[str] = field(default_factory=list)  # layers whose LoKr the host multiplies along other axes
    text_encoder: int = 0  # tensors
    bytes_said: int = 0  # memory of the updates that may take more than the file

    def count_unused(self, keys: Iterable[str]) -> None:
        """Count the keys that belong to no weight of the network: of text encoders, and the others by `count_absent`."""
        keys = sorted(keys)
        self.text_encoder += sum(1 for key in keys if TEXT_ENCODER.match(key))
        self.count_absent(key for key in keys if not TEXT_ENCODER.match(key))

    def count_absent(self, keys: Iterable[str]) -> None:
        """Sort keys into layers that the model does not have, and keys of unknown kinds."""
        layers: set[str] = set()
        for key in keys:
            if stem(key) == key:
                self.unread.append(key)
            elif not key.endswith(".alpha"):
                layers.add(stem(key))
        self.absent += sorted(layers)

    @property
    def applied(self) -> int:
        return sum(self.kinds.values())

    def check(self) -> None:
        """Refuse a file of which nothing, or next to nothing, fits the model.

        Raises:
            ValueError: it is for another architecture, or for a text encoder only.
        """
        total = self.applied + len(self.absent) + len(self.misshapen)
        if not self.applied and self.unreadable:
            raise ValueError(
                f"{self.adapter.file}: none of its layers can be applied. {self._reasons()} Load the checkpoint in another "
                "precision, or use a LoRA without DoRA."
            )
        if self.applied and self.applied >= LEAST_SHARE * total and self.applied >= len(self.misshapen):
            return
        file = self.adapter.file
        if not total and self.text_encoder:
            raise ValueError(
                f"{file}: its {self.text_encoder} weights belong to a text encoder only, so there is nothing to blend. Load it "
                f"with the host's Load LoRA (strength_model 0). {self._unread()}".rstrip()
            )
        if not total:
            raise ValueError(
                f"{file}: none of its {len(self.adapter.tensors)} weights belongs to this model's diffusion network. "
                f"{self._unread()} Choose an adapter made for this checkpoint.".replace("  ", " ")
            )
        made_for = architecture(self.adapter)
        if re.sub(r"\W", "", made_for or "") == self.model:
            made_for = None  # a variant of the same architecture, with other widths
        raise ValueError(
            f"{file}: {_share(self.applied, total)} this model, so it is made for another architecture"
            f"{f' ({made_for})' if made_for else ''}; this model is {self.model}. {self._reasons()} Choose an adapter made for "
            "this checkpoint."
        )

    def skipped(self) -> list[str]:
        """Return what has no effect, or another one than the trainer meant, in sentences."""
        parts = []
        skipped = len(self.absent) + len(self.misshapen) + len(self.unreadable)
        if skipped:
            parts.append(f"{self.applied} of {self.applied + skipped} layers applied. {self._reasons()}")
        if self.second:
            parts.append(
                f"{len(self.second)} of its updates have no effect ({_some(self.second)}): it holds two of one layer, and "
                "ComfyUI applies one. Save them as two files to apply both."
            )
        if self.unread:
            parts.append(self._unread())
        if self.spread:
            parts.append(
                f"{len(self.spread)} of its DoRA scales have one axis only ({_some(self.spread)}): ComfyUI spreads such a scale "
                "over the inputs, and so does the blend. If the images look wrong, give dora_scale the shape [outputs, 1]."
            )
        if self.other_axes:
            parts.append(
                f"{len(self.other_axes)} of its lokr_w2 have three or five axes ({_some(self.other_axes)}): ComfyUI multiplies "
                "such factors along other axes than LyCORIS, and so does the blend. If the images look wrong, give lokr_w2 the "
                "shape [rows, columns * kernel]."
            )
        return parts

    def text(self) -> str:
        """Return what was skipped, in a sentence or two; an empty text if everything was applied and fits in memory."""
        parts = self.skipped()
        if self.text_encoder:
            parts.append(
                f"It also holds {self.text_encoder} text-encoder weights. They take part where the prompts are encoded behind "
                "Blend Text Encoder, and have no effect otherwise."
            )
        scale = trained_scale(self.adapter.metadata, self.adapter.tensors)
        if scale is not None and not math.isclose(scale, 1.0, rel_tol=1e-3) and self.adapter.scales[0] is None:
            parts.append(
                f"It was trained with a factor of {scale:.3g} (alpha / rank) that ComfyUI does not read: choose the scale 'as "
                f"trained' in Load Reward LoRAs, or set its strength to {scale:.3g}."
            )
        if self.bytes_said > 2**20:
            kinds = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(self.kinds.items()))
            parts.append(f"Its updates ({kinds}) take {self.bytes_said / 2**20:.0f} MiB.")
        return f"{self.adapter.file}: {' '.join(parts)}" if parts else ""

    def _unread(self) -> str:
        if not self.unread:
            return ""
        return (
            f"{len(self.unread)} of its tensors have no effect ({_some(sorted(self.unread))}): ComfyUI reads nothing of that "
            f"kind for these layers. {missing_half(self.unread, self.unread)}"
        ).rstrip()

    def _reasons(self) -> str:
        reasons = []
        if self.absent:
            reasons.append(f"{len(self.absent)} that {self.place} does not have ({_some(self.absent)})")
        if self.misshapen:
            layer, why = self.misshapen[0]
            reasons.append(f"{len(self.misshapen)} of another shape ({layer}: {why.rstrip('.')})")
        if self.unreadable:
            layer, why = self.unreadable[0]
            reasons.append(
                f"{len(self.unreadable)} for which the base has no readable weight ({layer}: {why.rstrip('.')})"
            )
        return f"Skipped: {'; '.join(reasons)}." if reasons else ""


def _share(count: int, total: int) -> str:
    """How many layers fit, as the beginning of a sentence that goes on with the model."""
    if count:
        return f"only {count} of its {total} layers {'fits' if count == 1 else 'fit'}"
    return f"none of its {total} layers fits" if total > 1 else "its only layer does not fit"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return shown if len(names) <= 2 else f"{shown}, ..."


MARKS = (
    ("Wan", r"blocks[._]\d+[._](cross_attn|self_attn|ffn)"),
    ("Chroma", r"distilled_guidance_layer"),
    ("Flux", r"(double|single)_blocks|single_transformer_blocks"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img_mod|txt_mod|img_mlp)"),
    ("SD3", r"joint_blocks|transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj"),
    ("Z-Image or Lumina", r"(noise_refiner|context_refiner|layers[._]\d+[._](attention|feed_forward))"),
)
"""Architectures and a pattern that their layers' names have."""

WIDTHS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
"""Width of the text features that a UNet's cross-attention reads."""


def architecture(adapter: RewardLoRA) -> str | None:
    """Return the architecture that a file is made for, from its header or its layers' names, None if it cannot be told."""
    for entry in ("modelspec.architecture", "ss_base_model_version"):
        if adapter.metadata.get(entry):
            return adapter.metadata[entry]
    for key, tensor in adapter.tensors.items():
        for name, pattern in MARKS:
            if re.search(pattern, key):
                return name
        if re.search(r"attn2[._]to_[kv]\.(lora_down|lora\.down|lora_A)", key) and tensor.ndim > 1:
            return WIDTHS.get(tensor.shape[1])
    return None
