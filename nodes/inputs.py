"""The nodes Load Reward LoRAs and Preference Weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..blending.preference import Preference
from .adapters.files import RewardLoRAs, read_lora
from .engine.miniature import shipped_adapters
from .schema import PreferenceType, RewardLoRAsType, make_schema, preference_input, reward_loras_input

NONE = "None"


class LoadRewardLoRAs(io.ComfyNode):
    """Up to four adapter files, in the order of their preference weights; chain for more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="LoadRewardLoRAs",
            display_name="Load Reward LoRAs",
            description="Choose the LoRA adapters to blend. Any LoRA works, not only reward-tuned ones. Their order is the order of the preference weights.",
            search_aliases=["lora", "diffusion blend", "adapters"],
            inputs=[
                *(part for number in range(1, 5) for part in _lora_inputs(number)),
                reward_loras_input(optional=True, tooltip="Adapters from another Load Reward LoRAs; they come first."),
            ],
            outputs=[RewardLoRAsType.Output(display_name="reward_loras", tooltip="The adapters, in order.")],
        )

    @classmethod
    def execute(
        cls,
        lora_1: str,
        strength_1: float,
        lora_2: str,
        strength_2: float,
        lora_3: str,
        strength_3: float,
        lora_4: str,
        strength_4: float,
        reward_loras: RewardLoRAs | None = None,
    ) -> io.NodeOutput:
        chosen = ((lora_1, strength_1), (lora_2, strength_2), (lora_3, strength_3), (lora_4, strength_4))
        adapters = tuple(read_lora(file_path(file), strength) for file, strength in chosen if file != NONE)
        if reward_loras is not None:
            adapters = reward_loras.adapters + adapters
        if not adapters:
            raise ValueError("No LoRA is chosen: choose at least one in Load Reward LoRAs.")
        return io.NodeOutput(RewardLoRAs(adapters))

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """A file that was trained on is read again. Hashed: the host writes this into every image, and paths are private."""
        files = [inputs.get(f"lora_{number}", NONE) for number in range(1, 5)]
        paths = [Path(file_path(file)) for file in files if file != NONE]
        state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        return hashlib.sha256(repr(state).encode()).hexdigest()


class PreferenceWeights(io.ComfyNode):
    """How much of each adapter, and how far from the base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceWeights",
            display_name="Preference Weights",
            description="How much of each adapter (the weights count relative to their sum) and how far from the base model: KL scale 0 is the base, 1 the blend, beyond 1 exaggerates.",
            search_aliases=["preference", "diffusion blend", "kl scale"],
            inputs=[
                *(_weight_input(number, default) for number, default in enumerate((0.5, 0.5, 0.0, 0.0), start=1)),
                io.Float.Input(
                    "kl_scale",
                    default=1.0,
                    min=-5.0,
                    max=5.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Distance from the base model: 0 is the base, 1 the blend of the adapters, above 1 exaggerates, below 0 goes the other way.",
                ),
                reward_loras_input(
                    optional=True,
                    tooltip="Connect the adapters to check their number here, before the model is loaded.",
                ),
                preference_input(
                    optional=True,
                    tooltip="Another Preference Weights; its weights come first (for more than four adapters).",
                ),
            ],
            outputs=[PreferenceType.Output(display_name="preference", tooltip="The weights and the KL scale.")],
        )

    @classmethod
    def execute(
        cls,
        weight_1: float,
        weight_2: float,
        weight_3: float,
        weight_4: float,
        kl_scale: float,
        reward_loras: RewardLoRAs | None = None,
        preference: Preference | None = None,
    ) -> io.NodeOutput:
        result = Preference((weight_1, weight_2, weight_3, weight_4), kl_scale)
        if preference is not None:
            result = preference.followed_by(result)
        if reward_loras is not None:
            result.coefficients(reward_loras.names, reward_loras.kl_weights)  # raises what is wrong, here and not later
        return io.NodeOutput(result)


def file_path(file: str) -> str:
    """A chosen adapter's file: in the host's loras folders, or one that comes with the miniature."""
    path = folder_paths.get_full_path("loras", file)
    if path is None:
        path = shipped_adapters().get(file)
    return str(path or folder_paths.get_full_path_or_raise("loras", file))


def _lora_inputs(number: int) -> list[Any]:
    files = [file for file in folder_paths.get_filename_list("loras") if file.lower().endswith(".safetensors")]
    options = [NONE, *dict.fromkeys([*files, *shipped_adapters()])]
    return [
        io.Combo.Input(
            f"lora_{number}",
            options=options,
            default=NONE,
            tooltip=f"Adapter {number}, from the loras folder (.safetensors only); weight_{number} is its weight.",
        ),
        io.Float.Input(
            f"strength_{number}",
            default=1.0,
            min=-20.0,
            max=20.0,
            step=0.01,
            round=0.001,
            tooltip=f"Factor on adapter {number}'s whole update; 1 as trained.",
        ),
    ]


def _weight_input(number: int, default: float) -> Any:
    return io.Float.Input(
        f"weight_{number}",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.0001,
        tooltip=f"How much of adapter {number}, relative to the sum of all weights.",
    )
