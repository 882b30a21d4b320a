"""Inputs that several nodes share, and schemas that every ComfyUI version accepts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypedDict

import comfy.samplers
from comfy_api.latest import io

CATEGORY = "Diffusion Blend"

RewardLoRAsType = io.Custom("REWARD_LORAS")
PreferenceType = io.Custom("PREFERENCE")
RewardModelType = io.Custom("REWARD_MODEL")
ScoresType = io.Custom("SCORES")
DuelType = io.Custom("PREFERENCE_DUEL")


class Sampling(TypedDict):
    """The values of `sampling_inputs`, as a node's execute gets them."""

    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float


class SamplingWithoutSampler(TypedDict):
    """The same for a node that is its own sampler."""

    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    seed: int
    steps: int
    cfg: float
    scheduler: str
    denoise: float


class SamplingOfWholeRuns(TypedDict):
    """The same for a node that always starts from pure noise."""

    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


def make_schema(**keywords: Any) -> io.Schema:
    """A schema with the keywords that this host's version knows.

    An unknown keyword raises TypeError in the host's loader, and the whole extension would vanish with one log line.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in keywords.items() if name in known})


def kl_scale_input(name: str, default: float, tooltip: str) -> Any:
    """An input for a KL scale."""
    return io.Float.Input(name, default=default, min=-5.0, max=5.0, step=0.05, round=0.001, tooltip=tooltip)


def weight_input(number: int, default: float, tooltip: str, optional: bool = False) -> Any:
    """An input for one weight of a preference."""
    return io.Float.Input(
        f"weight_{number}",
        default=default,
        optional=optional,
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.0001,
        tooltip=tooltip,
    )


def check_finite(**values: float) -> None:
    """Refuse numbers that are not finite. The widgets cannot give them, but the API takes ``NaN``.

    Args:
        values: by the input's name.

    Raises:
        ValueError: a value is not finite.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: it must be a finite number.")


def model_input() -> Any:
    return io.Model.Input("model", tooltip="The diffusion model. LoRAs already on it belong to the base.")


def reward_loras_input(optional: bool = False, tooltip: str = "The adapters, from Load Reward LoRAs.") -> Any:
    return RewardLoRAsType.Input("reward_loras", optional=optional, tooltip=tooltip)


def preference_input(
    name: str = "preference",
    tooltip: str = "How much of each adapter, from Preference Weights. Without it all adapters count equally.",
) -> Any:
    """An optional input: a bypassed or muted Preference Weights leaves its place empty, and the graph still runs."""
    return PreferenceType.Input(name, optional=True, tooltip=tooltip)


def sampling_inputs(with_sampler: bool = True) -> list[Any]:
    """The inputs of the host's KSampler after the model, in its order, with the method's defaults."""
    sampler = io.Combo.Input(
        "sampler_name",
        options=comfy.samplers.KSampler.SAMPLERS,
        default="euler_ancestral",
        tooltip="The sampler. The paper's setting, DDIM with eta 1, is euler_ancestral here; 'ddim' is deterministic.",
    )
    return [
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise: empty for a new image."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The seed of the noise, and of the adapter draws where there are any.",
        ),
        io.Int.Input("steps", default=30, min=1, max=10000, tooltip="How many denoising steps."),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance; it is applied after the blend, to blended branches.",
        ),
        *([sampler] if with_sampler else []),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="normal",
            tooltip="How the noise levels are spaced.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the latent is replaced: below 1 keeps some of the input image.",
        ),
    ]


def draws_input() -> Any:
    return io.Combo.Input(
        "draws",
        options=["stratified", "independent"],
        default="stratified",
        tooltip="Stratified: over the run every adapter is used in proportion, in random order. Independent: each step draws anew.",
    )
