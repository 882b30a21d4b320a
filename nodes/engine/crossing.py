"""Fits cross adapters in the host: one for each pair, so that every preference comes near to its blend in one model call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blending.cross_fit import CHECKED, POOL, check_number, goal_of, pair_entries, start_cross
from ...blending.distillation import Example, Fitted, fit
from ...blending.gated_updates import GatedUpdates, Updates, trainable
from ...blending.groups import CROSS, KEY, fingerprint
from ...blending.updates import LowRank, Update
from ..adapters.baking import Baked, baked_metadata, fit_files
from ..adapters.files import RewardLoRAs
from ..host import Patcher
from .distil import DistilSettings, HostCall, load_with_gradient, normal_tensors, record, settings_in_header
from .fused_layers import layers_called


@dataclass(frozen=True)
class CrossFit:
    """The cross adapter of a pair.

    Attributes:
        pair: the places of the two adapters.
        baked: its low-rank pairs, for `finish`.
        fitted: the fit; its start is the soup.
        metadata: the header of its file.
    """

    pair: tuple[int, int]
    baked: Baked
    fitted: Fitted
    metadata: dict[str, str]


def fit_crosses(
    model: Patcher,
    loras: RewardLoRAs,
    rank: int,
    settings: DistilSettings,
    advance: Callable[[int, int], None],
) -> list[CrossFit]:
    """Fit a cross adapter to each pair of adapters, for every preference at KL scale 1.

    Args:
        model: the host's ModelPatcher. It is not changed.
        loras: at least two adapters, which are files.
        rank: of every layer; 0 is the larger rank of the two adapters on it.
        settings: of the runs and the fit of each pair.
        advance: called with the finished steps and their number. It may raise to stop.

    Raises:
        ValueError: there is no pair, an adapter is no file, is there twice or does not fit, or the model gives no gradient.
    """
    check_number(len(loras.adapters))
    chained = [adapter.name for adapter in loras if adapter.patches is not None]
    if chained:
        raise ValueError(f"A cross adapter belongs to two LoRA files, and {', '.join(chained)} comes from a MODEL.")
    marks = [fingerprint(adapter.tensors) for adapter in loras]
    made_with = [rank, settings_in_header(settings), [adapter.strength for adapter in loras]]
    entries = pair_entries(loras.names, marks, made_with)
    updates, key_of = fit_files(model, loras)
    each = settings.runs + settings.iterations
    found: list[CrossFit] = []
    for number, ((i, j), entry) in enumerate(entries.items()):
        done = number * each
        both = RewardLoRAs((loras.adapters[i], loras.adapters[j]))

        def own_advance(steps: int, done: int = done) -> None:
            advance(done + steps, len(entries) * each)

        layers, fitted = _fit_pair(model, both, [updates[i], updates[j]], rank, settings, own_advance)
        baked = Baked(pairs={name: (key_of(name), pair) for name, pair in layers.items()})
        found.append(CrossFit((i, j), baked, fitted, _metadata(both, entry, rank, settings, fitted)))
    return found


def _fit_pair(
    model: Patcher,
    both: RewardLoRAs,
    members: Sequence[Updates],
    rank: int,
    settings: DistilSettings,
    advance: Callable[[int], None],
) -> tuple[dict[str, LowRank], Fitted]:
    """The layers of a pair's cross adapter, and the fit. ``members`` are the two adapters' updates."""
    runs = record(model, both, [(w, 1 - w) for w in POOL], settings, advance)
    network: Any = model.model
    device = runs[0][1].device
    load_with_gradient(model, runs[0][1])
    with torch.inference_mode(False), normal_tensors(network):
        given = [_on(member, device) for member in members]
        new, factors = trainable(start_cross(network, members, rank, settings.schedule.seed, device))
        plain, gated = GatedUpdates(network, given), GatedUpdates(network, [*given, new])
        with layers_called({id(module) for module in gated.modules}):
            examples: dict[bool, list[Example]] = {False: [], True: []}
            for held_out, call in runs:
                examples[held_out].append(_example(call, plain, held_out))
            fitted = fit(
                *(gated, factors, examples[False], examples[True]),
                lambda generator: goal_of(float(torch.rand(1, generator=generator))),
                [goal_of(w) for w in CHECKED],
                settings.schedule,
                lambda number, _: advance(settings.runs + number),
            )
        layers: dict[str, LowRank] = {}
        for name, (update,) in new.items():
            assert isinstance(update, LowRank)
            layers[name] = LowRank(update.down.detach().cpu(), update.up.detach().cpu())
    return layers, fitted


def _on(member: Updates, device: torch.device) -> dict[str, list[Update]]:
    """Copies of updates on a device. Tensors that were made in inference mode cannot be part of a graph with gradient."""
    return {
        name: [update.with_tensors(part.to(device, copy=True) for part in update.tensors()) for update in updates]
        for name, updates in member.items()
    }


def _example(call: HostCall, members: GatedUpdates, held_out: bool) -> Example:
    """A recorded call with the x0 predictions of both adapters there, and the base's where the error is measured."""
    found: list[Tensor] = []
    with torch.no_grad():
        with members.installed():
            for gates in ((1.0, 0.0), (0.0, 1.0)):
                with members.at(gates):
                    found.append(call.predict().float().cpu())
        base = call.predict().float().cpu() if held_out else None
    return Example(call.predict, tuple(found), base, call.example().scale)


def _metadata(
    both: RewardLoRAs, entry: dict[str, Any], rank: int, settings: DistilSettings, fitted: Fitted
) -> dict[str, str]:
    baked: dict[str, Any] = {
        "method": CROSS,
        "adapters": [one.record for one in both],
        "rank": rank or "of the adapters",
        "error": round(fitted.error, 6),
        "soup_error": round(fitted.start, 6),
        "curve": [(number, round(error, 6)) for number, error in fitted.curve],
        **settings_in_header(settings),
    }
    even = (0.5, 0.5)
    return baked_metadata(both, even, 1.0, even, rank) | {
        "modelspec.title": f"{entry['rewards'][entry['member']]} (cross adapter)",
        KEY: json.dumps(entry),
        "diffusion_blend.baked": json.dumps(baked),
    }


def cross_report(names: Sequence[str], fit_of_pair: CrossFit) -> str:
    """What the fit of a pair has done, in words for the artist."""
    fitted, (i, j) = fit_of_pair.fitted, fit_of_pair.pair
    start = f"Distance to the blend of {names[i]} and {names[j]}, as a share of its effect: soup {fitted.start:.3f}, "
    if fitted.improved:
        return f"{start}with this file {fitted.error:.3f}."
    return f"{start}and the fit did not come nearer, so this file changes nothing. Try more iterations or another learning_rate."
