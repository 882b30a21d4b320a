"""``diffusion-blend bake --method distil``: one LoRA of a rank, fitted to the blend of several adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..blending.distillation import Example, FitSettings, Fitted, Goal, fit, held_out_error
from ..blending.gated_updates import GatedUpdates, trainable
from ..blending.updates import LowRank
from .adapter_files import device_of, read_adapter
from .baking import BakedFile, bake_files
from .blended import denoiser
from .trajectories import Call, Settings, load_pipeline, record

Say = Callable[[str], None]
Advance = Callable[[int, str], None]
"""Takes finished units of work and their name."""


def distil_files(
    base: str,
    files: Sequence[str],
    weights: Sequence[float],
    kl_scale: float,
    rank: int,
    settings: Settings,
    say: Say,
    advance: Advance,
) -> tuple[BakedFile, Fitted]:
    """Fit one LoRA to the blend of a preference. It starts as the soup.

    Args:
        base, files, weights, kl_scale: see `baking.bake_files`, which also makes the text encoders' part.
        rank: of every layer; 0 is the sum of the adapters' ranks.
        settings: see `Settings`.
        say: takes a line of the report.
        advance: called after each trajectory and each optimizer step.

    Returns:
        The file and the errors of the fit.

    Raises:
        ValueError: as `bake_files`, or the fit failed.
    """
    baked = bake_files(base, files, weights, kl_scale, rank)
    whole = baked if not baked.errors else bake_files(base, files, weights, kl_scale, 0)
    pipe = load_pipeline(base, settings)
    network = denoiser(pipe)
    adapters = [read_adapter(Path(file).stem, file, network) for file in files]
    calls: dict[bool, list[Call]] = {False: [], True: []}
    with torch.no_grad():
        for held_out, own in record(pipe, adapters, [(weights, kl_scale)], settings):
            calls[held_out] += own
            advance(1, "trajectories")
    examples = [example(network, call) for call in calls[False]]
    held_out = [with_base(example(network, call)) for call in calls[True]]
    soup = error_of(network, whole.layers, held_out)
    say(f"error to the blend, as a share of its effect, on {len(held_out)} held-out calls: soup {soup:.4f}")

    def finished(number: int, error: float | None) -> None:
        advance(1, "optimizer steps")
        if error is not None:
            say(f"iteration {number}: {error:.4f}")

    updates, factors = trainable(_on(network, baked.layers))
    schedule = FitSettings(settings.iterations, settings.batch, settings.learning_rate, settings.seed)
    fitted = fit(
        GatedUpdates(network, [updates]), factors, examples, held_out, lambda _: Goal(), [Goal()], schedule, finished
    )
    for layer, (pair,) in updates.items():
        assert isinstance(pair, LowRank)
        baked.layers[layer] = LowRank(pair.down.detach().cpu(), pair.up.detach().cpu())
    baked.metadata = fit_metadata(baked.metadata, "distil", fitted, soup, settings)
    return baked, fitted


def example(network: nn.Module, call: Call) -> Example:
    """A recorded call to fit to, whose output is the blend's."""
    return Example(partial(call.predict, network, device_of(network)), (call.output,))


def with_base(given: Example) -> Example:
    """The example with the base's prediction."""
    with torch.no_grad():
        return Example(given.predict, given.predictions, given.predict().cpu(), given.scale)


def error_of(network: nn.Module, layers: dict[str, LowRank], held_out: Sequence[Example]) -> float:
    """The error that a LoRA leaves to the blend; see `held_out_error`."""
    updates = GatedUpdates(network, [{layer: [pair] for layer, pair in _on(network, layers).items()}])
    with updates.installed():
        return held_out_error(updates, held_out, [Goal()])


def _on(network: nn.Module, layers: dict[str, LowRank]) -> dict[str, LowRank]:
    device = device_of(network)
    return {layer: LowRank(pair.down.to(device), pair.up.to(device)) for layer, pair in layers.items()}


def fit_metadata(
    header: dict[str, str], method: str, fitted: Fitted, soup: float, settings: Settings
) -> dict[str, str]:
    """The header of a baked file with what the fit was made of, and its errors.

    Args:
        header: of the file.
        method: of the command.
        fitted: the fit.
        soup: the error of the exact soup.
        settings: of the trajectories and the fit.
    """
    made: dict[str, Any] = json.loads(header["diffusion_blend.baked"])
    made |= {
        "method": method,
        "error": round(fitted.error, 6),
        "soup_error": round(soup, 6),
        "soup_error_at_this_rank": round(fitted.start, 6),
        "curve": [(number, round(error, 6)) for number, error in fitted.curve],
        "prompts": len(settings.prompts),
    }
    names = (
        "steps",
        "trajectories",
        "iterations",
        "batch",
        "learning_rate",
        "seed",
        "guidance",
        "eta",
        "height",
        "width",
    )
    made |= {name: getattr(settings, name) for name in names}
    return header | {"diffusion_blend.baked": json.dumps(made)}
