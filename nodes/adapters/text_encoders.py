"""A text encoder that encodes with every adapter's own text-encoder weights, and once without any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.lora
import comfy.sd
import torch
from torch import Tensor

from ..engine.notices import notify
from ..engine.refusals import CLIP_WEIGHTS_ONLY, refuse_weights
from ..host import Patcher
from .base_weights import BaseWeights, Unreadable
from .conversion import convert
from .differences import Updates, patched
from .encoded_text import Owner, bundle
from .files import RewardLoRA, RewardLoRAs
from .fitting import tried
from .leftovers import leftovers, live_keys
from .patches import adds, has_flat_scale, has_other_axes, kind_of
from .reader import converted, read_patches
from .report import TEXT_ENCODER, Report
from .targets import function_of, locate, offset_of, parameter_of

KEY = "diffusion_blend_texts"
"""The entry of a conditioning's options that says for whom the text was encoded, an `Owner`."""


Changes = Sequence[tuple[Mapping[Any, Any], float]]
"""The host's patches of a text encoder, with their strengths."""


class BlendedCLIP(comfy.sd.CLIP):
    """A CLIP whose encodings carry those of every adapter.

    Each encoding with an adapter is that of a clone with the adapter's patches. Nodes behind Blend Text Encoder (layers, LoRAs,
    hooks, bypass LoRAs) change this CLIP, and so also the clones.

    Args:
        clip: the host's CLIP.
        names: of the adapters.
        changes: of each adapter, empty for an adapter without text-encoder weights.
        soup: coefficients, and the changes of all adapters at these strengths; or None.
        before: by weight, the number of patches that come before the adapters' own; None for all that the CLIP has.
    """

    def __init__(
        self,
        clip: Any,
        names: tuple[str, ...],
        changes: tuple[Changes, ...],
        soup: tuple[tuple[float, ...], Changes] | None,
        before: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(no_init=True)
        self.__dict__.update(clip.clone().__dict__)
        self.names, self.changes, self.soup = names, changes, soup
        self.before = {key: len(some) for key, some in self.patcher.patches.items()} if before is None else before

    def clone(self, *args: Any, **kwargs: Any) -> BlendedCLIP:
        return BlendedCLIP(super().clone(*args, **kwargs), self.names, self.changes, self.soup, self.before)

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        """Encode once for each adapter. Every tensor of the result carries the adapters' own, as `EncodedText`."""

        def encode(clip: Any) -> Any:
            return clip.encode_from_tokens(tokens, return_pooled, return_dict=return_dict)

        encoded = self._encode_all(encode)
        return encoded | {KEY: self._owner()} if return_dict else encoded

    def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode once for each adapter, and with hooks that have a schedule once for each part of it, too."""
        if self.patcher.forced_hooks is None or not self.use_clip_schedule:
            return super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        texts = self._encode_all(lambda clip: clip.encode_from_tokens_scheduled(tokens, *args, **kwargs))
        return [[text, options | {KEY: self._owner()}] for text, options in texts]

    def get_key_patches(self) -> Any:
        raise ValueError(CLIP_WEIGHTS_ONLY.format("a merge"))

    def get_sd(self) -> Any:
        raise ValueError(CLIP_WEIGHTS_ONLY.format("a saved file"))

    def state_dict_for_saving(self) -> Any:
        return self.get_sd()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        notify(
            "The text is generated without the adapters of Blend Text Encoder. For the text of one LoRA use Load LoRA."
        )
        return super().generate(*args, **kwargs)

    def _owner(self) -> Owner:
        return Owner(self.names, None if self.soup is None else self.soup[0])

    def _encode_all(self, encode: Callable[[Any], Any]) -> Any:
        base = encode(self._with(()))
        every = self.changes if self.soup is None else (*self.changes, self.soup[1])
        # A copy where nothing changes, because a node may change either in place.
        others = [encode(self._with(changes)) if changes else _copied(base) for changes in every]
        return bundle(self._owner(), base, others)

    def _with(self, changes: Changes) -> Any:
        """A plain CLIP with an adapter's patches between those of the nodes before and after Blend Text Encoder."""
        clip = super().clone()
        present = clip.patcher.patches
        earlier = {key: some[: self.before.get(key, 0)] for key, some in present.items()}
        clip.patcher.patches = {key: some for key, some in earlier.items() if some}
        for patches, strength in changes:
            clip.add_patches(patches, strength)
        for key, some in present.items():
            later = some[self.before.get(key, 0) :]
            if later:
                clip.patcher.patches[key] = clip.patcher.patches.get(key, []) + later
        return clip


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
    changes = tuple(_changes(adapter, some) for adapter, some in zip(loras, patches, strict=True))
    together = None
    if soup is not None:
        weights = BaseWeights(clip.patcher)
        mixed = [_mixed(adapter, some, c, weights) for adapter, some, c in zip(loras, patches, soup, strict=True)]
        together = (soup, [part for parts in mixed for part in parts])
    blended = BlendedCLIP(clip, tuple(loras.names), changes, together)
    refuse_weights(blended.patcher, CLIP_WEIGHTS_ONLY)
    return blended, having, skipped


def _changes(adapter: RewardLoRA, patches: Mapping[Any, Any]) -> Changes:
    """What Load LoRA adds: at strength 0 of the text encoders alone only the weights that replace the model's."""
    strength = adapter.text_strength
    if strength == 0:
        replaced = {target: patch for target, patch in patches.items() if kind_of(patch) == "set"}
        patches = {} if adapter.is_off else replaced
    return [(patches, strength)] if patches else []


def _mixed(adapter: RewardLoRA, patches: Mapping[Any, Any], coefficient: float, weights: BaseWeights) -> Changes:
    """``coefficient * (W_i - W)``. A patch that does not only add to W becomes the difference that the host makes by it."""
    found: list[tuple[Mapping[Any, Any], float]] = []
    if coefficient == 0:
        return found
    for some, strength in _changes(adapter, patches):
        others = {target: patch for target, patch in some.items() if not adds(patch)}
        found.append(
            ({target: patch for target, patch in some.items() if target not in others}, coefficient * strength)
        )
        for target, patch in others.items():
            try:
                found.append((_difference(target, patch, strength, weights), coefficient))
            except Unreadable:
                found.append(({target: patch}, coefficient * strength))
    return [(some, strength) for some, strength in found if some]


def _difference(target: Any, patch: Any, strength: float, weights: BaseWeights) -> dict[Any, Any]:
    key = parameter_of(target)
    entry = (strength, patch, 1.0, offset_of(target), function_of(target))
    updates = patched([entry], locate(weights.model.model, key), weights.read(key))
    return {key: ("diff", (updates[0][1].tensors()[0],))} if updates else {}


def _copied(value: Any) -> Any:
    """An encoding with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value


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
    report.other_axes += [parameter_of(target)] * (fits and has_other_axes(patch))
    return fits


def _check_finite(adapter: RewardLoRA, patches: Mapping[Any, Any]) -> None:
    for patch in patches.values():
        weights = patch if isinstance(patch, tuple) else patch.weights
        for part in weights[-1] if isinstance(weights[-1], tuple) else weights:
            if isinstance(part, Tensor) and not bool(torch.isfinite(part.float()).all()):
                raise ValueError(f"{adapter.file}: its text-encoder weights hold NaN or infinite numbers.")
