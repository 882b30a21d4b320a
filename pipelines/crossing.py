"""``diffusion-blend bake --method cross``: one more adapter for each pair, so that every preference takes one call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..blending.cross_fit import CHECKED, POOL, check_number, goal_of, pair_entries, start_cross
from ..blending.distillation import Example, FitSettings, Fitted, fit
from ..blending.gated_updates import GatedUpdates, trainable
from ..blending.groups import CROSS, KEY
from ..blending.updates import LowRank
from .adapter_files import Adapter, device_of, read_adapter
from .baking import BakedFile, skeleton
from .blended import denoiser
from .crosses import split_crosses
from .distillation import Advance, Say, fit_metadata
from .trajectories import Call, Settings, load_pipeline, record


def cross_files(
    base: str, files: Sequence[str], rank: int, settings: Settings, say: Say, advance: Advance
) -> list[tuple[BakedFile, Fitted]]:
    """Fit a cross adapter to each pair of adapters, for every preference at KL scale 1.

    Args:
        base: a folder of diffusers.
        files: at least two LoRA files.
        rank: of every layer; 0 is the larger rank of the two adapters on it.
        settings: the trajectories are made for each pair.
        say: takes a line of the report.
        advance: called after each trajectory and each optimizer step.

    Returns:
        A file for each pair of places i < j, and the errors of its fit.

    Raises:
        ValueError: fewer than two files, a file that does not fit or is a cross adapter itself, or the fit failed.
    """
    check_number(len(files))
    _, is_unet, _ = skeleton(base)
    pipe = load_pipeline(base, settings)
    network = denoiser(pipe)
    adapters = [read_adapter(Path(file).stem, file, network) for file in files]
    crosses = split_crosses(adapters)[1]
    if crosses:
        raise ValueError(f"{crosses[0].name} is a cross adapter itself: give the adapters that it belongs to")
    made_with = [rank, {**vars(settings), "prompts": list(settings.prompts)}]
    entries = pair_entries([a.name for a in adapters], [a.fingerprint for a in adapters], made_with)
    found: list[tuple[BakedFile, Fitted]] = []
    for (i, j), entry in entries.items():
        pair = adapters[i], adapters[j]
        layers, fitted = _fit_pair(pipe, pair, rank, settings, say, advance)
        header = _metadata(entry, pair, files, rank)
        baked = BakedFile(layers, is_unet=is_unet, metadata=fit_metadata(header, CROSS, fitted, fitted.start, settings))
        found.append((baked, fitted))
    return found


def _fit_pair(
    pipe: Any, pair: Sequence[Adapter], rank: int, settings: Settings, say: Say, advance: Advance
) -> tuple[dict[str, LowRank], Fitted]:
    network = denoiser(pipe)
    members = GatedUpdates(network, [adapter.update for adapter in _on(network, pair)])
    preferences = [((w, 1 - w), 1.0) for w in POOL]
    examples: dict[bool, list[Example]] = {False: [], True: []}
    with torch.no_grad():
        for held_out, calls in record(pipe, pair, preferences, settings):
            examples[held_out] += [_example(network, members, call, held_out) for call in calls]
            advance(1, "trajectories")
    title = " x ".join(adapter.name for adapter in pair)

    def finished(number: int, error: float | None) -> None:
        advance(1, "optimizer steps")
        if error is not None:
            say(f"{title}, iteration {number}: {error:.4f}")

    start = start_cross(network, [a.update for a in pair], rank, settings.seed, device_of(network))
    new, factors = trainable(start)
    gated = GatedUpdates(network, [*(adapter.update for adapter in _on(network, pair)), new])
    fitted = fit(
        *(gated, factors, examples[False], examples[True]),
        lambda generator: goal_of(float(torch.rand(1, generator=generator))),
        [goal_of(w) for w in CHECKED],
        FitSettings(settings.iterations, settings.batch, settings.learning_rate, settings.seed),
        finished,
    )
    say(f"{title}: error to the blend, as a share of its effect: soup {fitted.start:.4f}, cross {fitted.error:.4f}")
    layers: dict[str, LowRank] = {}
    for layer, (update,) in new.items():
        assert isinstance(update, LowRank)
        layers[layer] = LowRank(update.down.detach().cpu(), update.up.detach().cpu())
    return layers, fitted


def _on(network: nn.Module, pair: Sequence[Adapter]) -> list[Adapter]:
    like = next(network.parameters())
    return [
        Adapter(
            a.name, {layer: [update.like(like.float()) for update in own] for layer, own in a.update.items()}, None, ""
        )
        for a in pair
    ]


def _example(network: nn.Module, members: GatedUpdates, call: Call, held_out: bool) -> Example:
    """A recorded call, with what both adapters predict there."""
    predict = partial(call.predict, network, device_of(network))
    found: list[Tensor] = []
    with members.installed():
        for gates in ((1.0, 0.0), (0.0, 1.0)):
            with members.at(gates):
                found.append(predict().cpu())
    return Example(predict, tuple(found), predict().cpu() if held_out else None)


def _metadata(entry: dict[str, Any], pair: Sequence[Adapter], files: Sequence[str], rank: int) -> dict[str, str]:
    names = {Path(file).stem: Path(file).name for file in files}
    title = entry["rewards"][entry["member"]]
    baked = {"method": CROSS, "adapters": [{"file": names[a.name]} for a in pair], "rank": rank or "of the adapters"}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"{title} (cross adapter)",
        "ss_network_module": "networks.lora",
        KEY: json.dumps(entry),
        "diffusion_blend.baked": json.dumps(baked),
    }
