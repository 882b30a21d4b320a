"""Conditionings by adapter: each row of gates is evaluated with the text encoding of its adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import comfy.samplers
import torch
from torch import Tensor

from ...blending.plans import Gates
from ..adapters.text_encoders import KEY, Encoding, Texts

Conds = Mapping[str, Any]
"""The host's ``model_conds`` of one conditioning: name -> an object that is made a tensor for a call."""


class CallTexts(Protocol):
    """The conditionings of a run by row of gates."""

    def inputs(self, ids: Sequence[Any], gates: Gates, images: int, names: Sequence[str]) -> dict[str, Any]: ...


class RunTexts:
    """The conditionings of one run, for each adapter.

    Args:
        count: of the adapters.
        base: by the conditioning's id, as the host made it.
        adapters: by the conditioning's id and the adapter's index; only where they differ from the base.
        soups: by the conditioning's id: coefficients and conditioning.
    """

    def __init__(
        self,
        count: int,
        base: Mapping[Any, Conds],
        adapters: Mapping[tuple[Any, int], Conds],
        soups: Mapping[Any, tuple[Gates, Conds]],
    ) -> None:
        self._count, self._base, self._adapters, self._soups = count, base, adapters, soups

    def inputs(self, ids: Sequence[Any], gates: Gates, images: int, names: Sequence[str]) -> dict[str, Any]:
        """Return the inputs of a call that depend on the text.

        Args:
            ids: of the call's conditionings, in order.
            gates: float[m].
            images: rows of each conditioning.
            names: of the call's inputs.

        Raises:
            ValueError: the gates are those of a soup whose own encoding is missing.
        """
        made = []
        for conditioning in ids:
            conds = self._conds(conditioning, gates)
            made.append(
                {name: conds[name].process_cond(batch_size=images, area=None) for name in names if name in conds}
            )
        return comfy.samplers.cond_cat(made)

    def _conds(self, conditioning: Any, gates: Gates) -> Conds:
        used = [adapter for adapter, gate in enumerate(gates) if gate != 0]
        if not any((conditioning, adapter) in self._adapters for adapter in used):
            return self._base[conditioning]
        if len(used) == 1 and gates[used[0]] == 1:
            return self._adapters[conditioning, used[0]]
        soup = self._soups.get(conditioning)
        if soup is not None and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(soup[0], gates, strict=True)):
            return soup[1]
        raise ValueError(
            "The adapters' text encodings cannot be mixed for this method: connect the same preference to Blend Text Encoder, or "
            "choose the method blend or stochastic."
        )


def texts_of_run(guider: Any, noise: Tensor, adapters: int, **options: Any) -> RunTexts | None:
    """Prepare the conditionings of a run, None if no text was encoded by Blend Text Encoder.

    Args:
        guider: the host's guider, after it has prepared its own conditionings.
        noise: of the run, float[N, ...].
        adapters: number of the blend's adapters.
        options: what the host passes to ``encode_model_conds`` beside them.

    Raises:
        ValueError: a conditioning was made for other adapters, or changed by a node that does not know of the encodings.
    """
    every = [(kind, cond) for kind, conds in guider.conds.items() for cond in conds]
    if not any(KEY in cond for _, cond in every):
        return None
    base: dict[Any, Conds] = {}
    changed: dict[tuple[Any, int], Conds] = {}
    soups: dict[Any, tuple[Gates, Conds]] = {}

    def prepare(kind: str, cond: Any, encoding: Encoding) -> Conds:
        return prepared_conds(guider, kind, {**cond, **encoding, "cross_attn": encoding["cond"]}, noise, **options)

    for kind, cond in every:
        base[cond["uuid"]] = cond["model_conds"]
        texts = cond.get(KEY)
        if texts is None:
            continue
        _check(cond, texts, adapters)
        for index, encoding in enumerate(texts.adapters):
            if encoding is not None:
                changed[cond["uuid"], index] = prepare(kind, cond, encoding)
        if texts.soup is not None:
            soups[cond["uuid"]] = (texts.soup[0], prepare(kind, cond, texts.soup[1]))
    return RunTexts(adapters, base, changed, soups)


def prepared_conds(guider: Any, kind: str, cond: Any, noise: Tensor, **options: Any) -> Conds:
    """Return what the host's network prepares of a conditioning, beside what the host has prepared before.

    Args:
        guider: the host's guider.
        kind: of the conditioning, "positive" or another one of the guider's.
        cond: its entries.
        noise: of the run, float[N, ...].
        options: what the host passes to ``encode_model_conds`` beside them.
    """
    function, own = guider.inner_model.extra_conds, {**cond, "model_conds": {}}
    (prepared,) = comfy.samplers.encode_model_conds(function, [own], noise, noise.device, kind, **options)
    return {**cond["model_conds"], **prepared["model_conds"]}


def _check(cond: Any, texts: Texts, adapters: int) -> None:
    if len(texts.names) != adapters:
        raise ValueError(
            f"This text was encoded for {len(texts.names)} adapters ({', '.join(texts.names)}), but the model blends {adapters}: "
            "connect the same adapters to Blend Text Encoder and to the blended model."
        )
    for name, value in (("cross_attn", texts.base["cond"]), ("pooled_output", texts.base.get("pooled_output"))):
        if isinstance(value, Tensor) and not _same(cond.get(name), value):
            raise ValueError(
                "A node between CLIP Text Encode and the sampler changes the encoded text (average, concat, a style model), and "
                "does not know of the adapters' own encodings. Use Conditioning (Combine), or leave Blend Text Encoder out."
            )
    if cond.get("control") is not None:
        raise ValueError(
            "A ControlNet reads the text once for all adapters, so it cannot be combined with Blend Text Encoder. Connect the "
            "CLIP directly for this workflow."
        )


def _same(value: Any, expected: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == expected.shape and torch.equal(value.to(expected), expected)


def joined(parts: Sequence[Any]) -> Any:
    """Join one input's values of several rows along the batch, [K] of [N, ...] -> [K * N, ...]; lists item by item."""
    if isinstance(parts[0], list):
        return [joined(items) for items in zip(*parts, strict=True)]
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) and parts[0].ndim > 0 else parts[0]


def chosen(rows: Mapping[Gates, Any], gates: Sequence[Gates]) -> Any:
    """Choose one input's value for every row of a batch by the row's gates, [N, ...]; lists item by item."""
    first = rows[gates[0]]
    if isinstance(first, list):
        return [chosen({key: value[i] for key, value in rows.items()}, gates) for i in range(len(first))]
    if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != len(gates):
        return first
    return torch.stack([rows[own][number] for number, own in enumerate(gates)])
