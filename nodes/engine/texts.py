"""Conditionings by adapter: each row of gates is evaluated with the text encoding of its adapter."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import comfy.samplers
import torch
from torch import Tensor

from ...blending.plans import Gates
from ..adapters.encoded_text import EncodedText, Owner
from ..adapters.text_encoders import KEY

Conds = Mapping[str, Any]
"""The host's ``model_conds`` of one conditioning: name -> an object that is made a tensor for a call."""


class CallTexts(Protocol):
    """The conditionings of a run by row of gates."""

    def inputs(self, ids: Sequence[Any], gates: Gates, images: int, names: Sequence[str]) -> dict[str, Any]: ...

    def control(self, ids: Sequence[Any], gates: Gates, /) -> Any: ...


class RunTexts:
    """The conditionings of one run, for each adapter.

    Args:
        base: by the conditioning's id, as the host made it.
        adapters: by the conditioning's id and the adapter's index; only where they differ from the base.
        soups: by the conditioning's id: coefficients and conditioning.
        controls: the ControlNets by the conditioning's id, None for those without.
    """

    def __init__(
        self,
        base: Mapping[Any, Conds],
        adapters: Mapping[tuple[Any, int], Conds],
        soups: Mapping[Any, tuple[Gates, Conds]],
        controls: Mapping[Any, Any],
    ) -> None:
        self._base, self._adapters, self._soups, self._controls = base, adapters, soups, controls

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

    def control(self, ids: Sequence[Any], gates: Gates) -> Any:
        """Return the ControlNet of a call that reads another text than the base's, None where there is none.

        The host joins only conditionings with the same ControlNet in a call.
        """
        if all(self._conds(conditioning, gates) is self._base[conditioning] for conditioning in ids):
            return None
        return self._controls[ids[0]]

    def _conds(self, conditioning: Any, gates: Gates) -> Conds:
        used = [adapter for adapter, gate in enumerate(gates) if gate != 0]
        if not any((conditioning, adapter) in self._adapters for adapter in used):
            return self._base[conditioning]
        if len(used) == 1 and gates[used[0]] == 1:
            return self._adapters[conditioning, used[0]]
        soup = self._soups.get(conditioning)
        if soup is not None and all(
            math.isclose(a, b, abs_tol=1e-6) for a, b in zip(soup[0], gates[: len(soup[0])], strict=True)
        ):
            return soup[1]
        raise ValueError(
            "The adapters' text encodings cannot be mixed for this method: connect the same preference to Blend Text Encoder, or "
            "choose the method blend or stochastic."
        )


def texts_of_run(guider: Any, noise: Tensor, names: Sequence[str], **options: Any) -> RunTexts | None:
    """Prepare the conditionings of a run, None if no text was encoded by Blend Text Encoder.

    The run's own copies of the conditionings get the base's encoding alone.

    Args:
        guider: the host's guider, after it has prepared its own conditionings.
        noise: of the run, float[N, ...].
        names: of the blend's adapters, in their order.
        options: what the host passes to ``encode_model_conds`` beside them.

    Raises:
        ValueError: a conditioning was made for other adapters, or changed by a node that lost the adapters' encodings.
    """
    every = [(kind, cond) for kind, conds in guider.conds.items() for cond in conds]
    if not any(KEY in cond or _texts(cond) for _, cond in every):
        return None
    base: dict[Any, Conds] = {}
    changed: dict[tuple[Any, int], Conds] = {}
    soups: dict[Any, tuple[Gates, Conds]] = {}
    sources = _sources(every)

    def prepare(kind: str, cond: Any, texts: Mapping[str, Tensor]) -> Conds:
        return prepared_conds(guider, kind, {**cond, **texts}, noise, **options)

    for kind, cond in every:
        source = sources[id(cond)]
        if source is not cond:
            # The host has copied a conditioning of the other branch for its area, with that one's id.
            cond["uuid"] = uuid.uuid5(cond["uuid"], kind)
            own, theirs = cond["uuid"], source["uuid"]
            base[own] = base[theirs]
            changed |= {(own, index): conds for (key, index), conds in changed.items() if key == theirs}
            soups |= {own: soups[theirs]} if theirs in soups else {}
            continue
        texts = _texts(cond)
        order = _checked_order(cond, texts, names)
        if not texts:
            base[cond["uuid"]] = cond["model_conds"]
            continue
        owner = next(iter(texts.values())).owner
        base[cond["uuid"]] = prepare(kind, cond, {name: text.plain for name, text in texts.items()})
        for index, of_text in enumerate(order):
            if any(not torch.equal(text.others[of_text], text.plain) for text in texts.values()):
                changed[cond["uuid"], index] = prepare(kind, cond, _of(texts, of_text))
        if owner.soup is not None:
            gates = tuple(owner.soup[of_text] for of_text in order)
            soups[cond["uuid"]] = (gates, prepare(kind, cond, _of(texts, len(order))))
    for _, cond in every:
        cond.update({name: text.plain for name, text in _texts(cond).items()}, model_conds=base[cond["uuid"]])
    return RunTexts(base, changed, soups, {cond["uuid"]: cond.get("control") for _, cond in every})


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


def _texts(cond: Any) -> dict[str, EncodedText]:
    return {name: value for name, value in cond.items() if isinstance(value, EncodedText)}


def _of(texts: Mapping[str, EncodedText], index: int) -> dict[str, Tensor]:
    return {name: text.others[index] for name, text in texts.items()}


def _sources(every: Sequence[tuple[str, Any]]) -> dict[int, Any]:
    """The conditioning that each conditioning has its text from, by ids of the dicts.

    A conditioning for an area has a partner of the other branch, which the host copies from it, but with the other branch's text.
    """
    first: dict[int, Any] = {}
    found = {}
    for _, cond in every:
        values = [id(value) for value in cond["model_conds"].values()]
        found[id(cond)] = next((first[value] for value in values if value in first), cond)
        for value in values:
            first.setdefault(value, found[id(cond)])
    return found


def _checked_order(cond: Any, texts: Mapping[str, EncodedText], names: Sequence[str]) -> list[int]:
    """Where each adapter of the blend is among those that a text was encoded for. They are found by their names.

    Raises:
        ValueError: the text was encoded for other adapters, or lost their encodings.
    """
    owner: Owner | None = next((text.owner for text in texts.values()), cond.get(KEY))
    if KEY in cond and cond.get("cross_attn") is not None and "cross_attn" not in texts:
        raise ValueError(
            "A node between CLIP Text Encode and the sampler changes the encoded text in a way that loses the adapters' own "
            "encodings. Leave that node out, or connect the CLIP directly instead of Blend Text Encoder."
        )
    if owner is None or owner.names == tuple(names):
        return list(range(len(names)))
    if sorted(owner.names) != sorted(names):
        raise ValueError(
            f"This text was encoded for {len(owner.names)} adapters ({', '.join(owner.names)}), but the model blends "
            f"{len(names)} ({', '.join(names)}): connect the same adapters to Blend Text Encoder and to the blended model."
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"Blend Text Encoder and the blended model have the adapters in another order ({', '.join(owner.names)}; "
            f"{', '.join(names)}), and two of them have the same name: connect the same reward_loras to both."
        )
    return [owner.names.index(name) for name in names]


def joined(parts: Sequence[Any]) -> Any:
    """Join one input's values of several rows along the batch, [K] of [N, ...] -> [K * N, ...]; lists and dicts by item."""
    if isinstance(parts[0], dict):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], list):
        return [joined(items) for items in zip(*parts, strict=True)]
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) and parts[0].ndim > 0 else parts[0]


def chosen(rows: Mapping[Gates, Any], gates: Sequence[Gates]) -> Any:
    """Choose one input's value for every row of a batch by the row's gates, [N, ...]; lists and dicts by item."""
    first = rows[gates[0]]
    if isinstance(first, dict):
        return {name: chosen({key: value[name] for key, value in rows.items()}, gates) for name in first}
    if isinstance(first, list):
        return [chosen({key: value[i] for key, value in rows.items()}, gates) for i in range(len(first))]
    if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != len(gates):
        return first
    return torch.stack([rows[own][number] for number, own in enumerate(gates)])
