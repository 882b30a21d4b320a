"""A text encoder that encodes with every adapter's own text-encoder weights, and once without any."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.sd
import torch
from torch import Tensor

from ..host import Patcher
from .base_weights import BaseWeights
from .conversion import Updates, convert
from .encoded_text import Owner, bundle
from .files import RewardLoRA, RewardLoRAs
from .fitting import tried
from .leftovers import leftovers, live_keys
from .patches import has_flat_scale, kind_of
from .reader import converted, read_patches
from .report import TEXT_ENCODER, Report
from .targets import locate, parameter_of

KEY = "diffusion_blend_texts"
"""The entry of a conditioning's options that says for whom the text was encoded, an `Owner`."""


class BlendedCLIP(comfy.sd.CLIP):
    """A CLIP whose encodings carry those of every adapter.

    Args:
        clip: the host's CLIP.
        names: of the adapters.
        parts: the CLIP with each adapter's patches, None for an adapter without text-encoder weights.
        soup: coefficients, and the CLIP with all adapters' patches at these strengths; or None.
    """

    def __init__(
        self,
        clip: Any,
        names: tuple[str, ...],
        parts: tuple[Any | None, ...],
        soup: tuple[tuple[float, ...], Any] | None,
    ) -> None:
        super().__init__(no_init=True)
        self.__dict__.update(clip.clone().__dict__)
        self.names, self.parts, self.soup = names, parts, soup

    def clone(self, *args: Any, **kwargs: Any) -> BlendedCLIP:
        clones = tuple(None if part is None else part.clone(*args, **kwargs) for part in self.parts)
        soup = None if self.soup is None else (self.soup[0], self.soup[1].clone(*args, **kwargs))
        return BlendedCLIP(super().clone(*args, **kwargs), self.names, clones, soup)

    def add_patches(self, *args: Any, **kwargs: Any) -> Any:
        for part in self._others():
            part.add_patches(*args, **kwargs)
        return super().add_patches(*args, **kwargs)

    def clip_layer(self, layer_idx: int) -> None:
        for part in self._others():
            part.clip_layer(layer_idx)
        super().clip_layer(layer_idx)

    def set_tokenizer_option(self, option_name: str, value: Any) -> None:
        for part in self._others():
            part.set_tokenizer_option(option_name, value)
        super().set_tokenizer_option(option_name, value)

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        """Encode once for each adapter. Every tensor of the result carries the adapters' own, as `EncodedText`."""
        base = super().encode_from_tokens(tokens, return_pooled, return_dict=return_dict)

        def encode(clip: Any) -> Any:
            if clip is None:  # a copy, because a node may change either in place
                return copy.deepcopy(base)
            return clip.encode_from_tokens(tokens, return_pooled, return_dict=return_dict)

        clips = self.parts if self.soup is None else (*self.parts, self.soup[1])
        owner = Owner(self.names, None if self.soup is None else self.soup[0])
        encoded = bundle(owner, base, [encode(clip) for clip in clips])
        return encoded | {KEY: owner} if return_dict else encoded

    def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        if self.patcher.forced_hooks is not None and self.use_clip_schedule:
            raise ValueError(
                "LoRA hooks with a schedule on the text encoder cannot be combined with Blend Text Encoder. Put the hooks on "
                "the conditioning, or leave Blend Text Encoder out."
            )
        return super().encode_from_tokens_scheduled(tokens, *args, **kwargs)

    def _others(self) -> list[Any]:
        return [part for part in (*self.parts, self.soup and self.soup[1]) if part is not None]


def blended_clip(
    clip: Any, loras: RewardLoRAs, soup: tuple[float, ...] | None
) -> tuple[Any, tuple[str, ...], list[str]]:
    """Return a CLIP whose encodings carry those of every adapter.

    Args:
        clip: the host's CLIP.
        loras: the adapters.
        soup: coefficients of the adapters for the soup's own encoding, or None.

    Returns:
        The CLIP, the names of the adapters that have weights for it, and what of each file is skipped, in words. Without any
        weights it is the same CLIP.

    Raises:
        ValueError: a file's text-encoder weights are damaged.
    """
    hosts = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    reports = [Report(adapter, "", "this text encoder") for adapter in loras]
    patches = [_patches(report, clip.patcher, hosts) for report in reports]
    skipped = [f"{report.adapter.file}: {' '.join(report.skipped())}" for report in reports if report.skipped()]
    having = tuple(name for name, some in zip(loras.names, patches, strict=True) if some)
    if not having:
        return clip, having, skipped
    parts = tuple(
        _patched(clip, [(some, adapter.text_strength)]) if some else None
        for some, adapter in zip(patches, loras, strict=True)
    )
    together = None
    if soup is not None:
        strengths = [c * adapter.text_strength for c, adapter in zip(soup, loras, strict=True)]
        together = (soup, _patched(clip, list(zip(patches, strengths, strict=True))))
    return BlendedCLIP(clip, tuple(loras.names), parts, together), having, skipped


def _patched(clip: Any, patches: list[tuple[Mapping[Any, Any], float]]) -> Any:
    changed = clip.clone()
    for some, strength in patches:
        if some and strength:
            changed.add_patches(some, strength)
    return changed


def _patches(report: Report, patcher: Patcher, hosts: Mapping[str, Any]) -> dict[Any, Any]:
    """The host's patches of a text encoder in a file, those that fit. The report says what does not.

    Raises:
        ValueError: they are damaged.
    """
    adapter = report.adapter
    tensors = converted(adapter)
    found, used = read_patches(adapter, tensors, hosts)
    _check_finite(adapter, found)
    report.second, report.unread = map(list, leftovers(used, hosts, found, live_keys(used, found)))
    report.count_absent(key for key in tensors if key not in used and TEXT_ENCODER.match(key))
    weights = BaseWeights(patcher)
    return {target: patch for target, patch in found.items() if _fits(target, patch, report, weights)}


def _fits(target: Any, patch: Any, report: Report, weights: BaseWeights) -> bool:
    """Whether the host can apply a patch, by the same conversion as that of the network's patches."""

    def make() -> Updates:
        part = locate(weights.model.model, target)
        return convert(patch, part, report.adapter.text_strength, weights, None)

    fits = tried(target, make, report.adapter, report) is not None or bool(report.unreadable)
    report.unreadable.clear()  # left to the patcher of the extension that stores the weight
    report.kinds[kind_of(patch)] += fits
    report.spread += [parameter_of(target)] * (fits and has_flat_scale(patch))
    return fits


def _check_finite(adapter: RewardLoRA, patches: Mapping[Any, Any]) -> None:
    for patch in patches.values():
        weights = patch if isinstance(patch, tuple) else patch.weights
        for part in weights[-1] if isinstance(weights[-1], tuple) else weights:
            if isinstance(part, Tensor) and not bool(torch.isfinite(part.float()).all()):
                raise ValueError(f"{adapter.file}: its text-encoder weights hold NaN or infinite numbers.")
