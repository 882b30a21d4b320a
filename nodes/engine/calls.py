"""A model call of the host that can be repeated: for one row of a plan, or for several rows in one batch."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...blending.exchange import RowsDoNotFit
from ...blending.plans import Gates
from ..host import Executor
from .images import frames_of
from .randomness import CallRandomness
from .texts import CallTexts, chosen, joined

WITHOUT_CACHES = {"qwen_image21_cache": {"device": "off"}}
"""Options of the host that switch off caches of keys and values, which are right for constant weights only."""

NO_TEXT = ("c_concat", "control", "transformer_options")
"""Inputs of a call that do not depend on the text."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call, by position and by name."""

_NAMES = ("c_concat", "c_crossattn", "control", "transformer_options")


class ModelCall:
    """One call of APPLY_MODEL.

    Args:
        executor: the host's next wrapper.
        x: noisy latents, float[N, ...], N = chunks of conditionings * images.
        t: noise levels, float[N].
        args: c_concat, c_crossattn, control, transformer_options, as the host passes them.
        kwargs: further conditioning inputs.
        texts: the run's conditionings by row of gates, or None where all rows have the same.
    """

    def __init__(
        self,
        executor: Executor,
        x: Tensor,
        t: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        texts: CallTexts | None = None,
    ) -> None:
        self.executor, self.x, self.t, self.texts = executor, x, t, texts
        self.named: dict[str, Any] = dict.fromkeys(_NAMES) | dict(zip(_NAMES, args, strict=False)) | kwargs
        self.transformer_options: dict[str, Any] = self.named["transformer_options"] or {}
        self.chunks = len(self.transformer_options.get("cond_or_uncond", (0,)))
        self.images = x.shape[0] // self.chunks
        self._randomness = CallRandomness(x.device)

    def inputs(self, rows: list[tuple[Gates, ...]]) -> Inputs:
        """Make the network's inputs for rows of gates: copies of everything that it may consume or mark.

        Args:
            rows: K rows of gates.
        """
        count = len(rows)
        named = {
            name: self._repeat(value, count)
            for name, value in self.named.items()
            if name not in ("control", "transformer_options")
        }
        control = self.named["control"]
        if control is not None:  # the network empties these lists
            control = {name: [self._repeat(part, count) for part in parts] for name, parts in control.items()}
        if self.texts is not None:
            named |= self._texts(rows, self.texts)
            control = named.pop("control", control)
        first = (named.pop("c_concat"), named.pop("c_crossattn"), control, self._options(rows))
        return (self._repeat(self.x, count), self._repeat(self.t, count), *first), named

    def __call__(self, inputs: Inputs) -> Tensor:
        """Predict with the gates that are set in the side path, and the same random numbers at every call.

        Args:
            inputs: of K rows of gates.

        Returns:
            Row-major predictions, float[K * N, ...].
        """
        self._randomness.begin()
        positional, named = inputs
        return self.executor(*positional, **named)

    def _options(self, rows: list[tuple[Gates, ...]]) -> dict[str, Any]:
        count, options = len(rows), self.transformer_options.copy()
        for name in ("cond_or_uncond", "uuids"):
            if name in options:
                options[name] = list(options[name]) * count
        if "uuids" in options:
            # Caches inside the network use these as keys, and another row of gates is another input.
            each = len(options["uuids"]) // count
            options["uuids"] = [
                uuid.uuid5(original, repr(rows[number // each])) for number, original in enumerate(options["uuids"])
            ]
        return options | WITHOUT_CACHES

    def _texts(self, rows: list[tuple[Gates, ...]], texts: CallTexts) -> dict[str, Any]:
        """The inputs that depend on the text, for all rows of gates."""
        found: list[dict[str, Any]] = []
        for row in rows:
            each = {gates: self._texts_of(gates, texts) for gates in dict.fromkeys(row)}
            if len(row) == 1:
                found.append(each[row[0]])
            else:
                gates = self.gates_of_batch(row)
                some = each[row[0]]
                found.append({name: chosen({key: own[name] for key, own in each.items()}, gates) for name in some})
        try:
            return {name: joined([inputs[name] for inputs in found]) for name in found[0]}
        except RuntimeError as error:
            raise RowsDoNotFit(f"The adapters' text encodings are of different lengths ({error}).") from error

    def _texts_of(self, gates: Gates, texts: CallTexts) -> dict[str, Any]:
        """The inputs that depend on the text, with the output of a ControlNet, which reads the text, too."""
        names = [name for name, value in self.named.items() if name not in NO_TEXT and value is not None]
        ids = self.transformer_options["uuids"]
        inputs = texts.inputs(ids, gates, self.images, names)
        if self.named["control"] is None:
            return inputs
        network = texts.control(ids, gates)
        if network is None:
            return inputs | {"control": self.named["control"]}
        given = {
            name: value for name, value in (self.named | inputs).items() if value is not None and name != "control"
        }
        return inputs | {"control": network.get_control(self.x, self.t, given, self.chunks, self.transformer_options)}

    @property
    def foreign_patches(self) -> list[str]:
        """The kinds of patches and attention replacements that other nodes put on the model, by the host's names."""
        groups = (self.transformer_options.get(name) or {} for name in ("patches", "patches_replace"))
        return sorted({str(kind) for group in groups for kind, patches in group.items() if patches})

    @property
    def patches(self) -> list[Any]:
        """The patches that other nodes put on the model."""
        listed = (self.transformer_options.get("patches") or {}).values()
        replaced = (self.transformer_options.get("patches_replace") or {}).values()
        return [patch for group in listed for patch in group] + [
            patch for group in replaced for patch in group.values()
        ]

    @property
    def foreign_wrappers(self) -> bool:
        """Whether other nodes wrap the network's calls from here on."""
        wrappers = self.transformer_options.get("wrappers", {})
        return bool(wrappers.get(WrappersMP.DIFFUSION_MODEL)) or len(wrappers.get(WrappersMP.APPLY_MODEL, {})) > 1

    @property
    def kind(self) -> Hashable:
        """The shapes of everything that the network gets: calls of one kind treat their rows alike."""
        control = self.named["control"]
        shapes = {
            name: _shapes(value) for name, value in self.named.items() if name not in ("control", "transformer_options")
        }
        return tuple(self.x.shape), self.chunks, tuple(sorted(shapes.items())), _shapes(control)

    @property
    def conditionings(self) -> tuple[Hashable, ...]:
        """Keys of the call's conditionings, the same at every step of a run.

        Besides the conditioning itself a key names the part of the latent that a context window covers, and the patches of other
        nodes: guidance nodes call the model again with further patches.
        """
        branches = self.transformer_options.get("cond_or_uncond", (0,))
        window = self.transformer_options.get("context_window")
        part = (None if window is None else (window.dim, frames_of(window)), self._patched_places)
        return tuple(
            (*key, *part) for key in zip(branches, self.transformer_options.get("uuids", branches), strict=True)
        )

    @property
    def _patched_places(self) -> Hashable:
        counts = {kind: len(patches) for kind, patches in (self.transformer_options.get("patches") or {}).items()}
        places = {
            kind: tuple(map(str, replaced))
            for kind, replaced in (self.transformer_options.get("patches_replace") or {}).items()
        }
        return tuple(sorted(counts.items())), tuple(sorted(places.items()))

    def gates_of_batch(self, row: tuple[Gates, ...]) -> tuple[Gates, ...]:
        """A row's gates for this call: one for the whole batch, or those of every image, repeated for every chunk."""
        return row if len(row) == 1 else row * self.chunks

    def gates_of_each(self, row: tuple[Gates, ...]) -> tuple[Gates, ...]:
        """A row's gates for each of the N inputs."""
        return row * (self.x.shape[0] // len(row))

    def memory_shapes(self, rows: int) -> tuple[list[int], dict[str, list[torch.Size]]]:
        """The shapes that the host's memory estimate takes, for this many rows in one call."""
        shapes: dict[str, list[torch.Size]] = defaultdict(list)
        for name, value in self.named.items():
            if isinstance(value, Tensor):
                shapes[name] += [value.shape] * rows
        return [self.x.shape[0] * rows, *self.x.shape[1:]], shapes

    def _repeat(self, value: Any, count: int) -> Any:
        """Repeat tensors that have one entry per input. The host's conditionings are batch-first tensors or lists of them."""
        if count == 1:
            return value
        if isinstance(value, list):
            return [self._repeat(part, count) for part in value]
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.x.shape[0]:
            return value.repeat(count, *[1] * (value.ndim - 1))
        return value


def _shapes(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple(sorted((str(name), _shapes(part)) for name, part in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_shapes(part) for part in value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
