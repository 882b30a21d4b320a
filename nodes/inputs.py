"""The nodes Load Reward LoRAs and Preference Weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..blending.preference import Preference
from ..blending.slots import Slots
from .adapters.files import ENDINGS, RewardLoRAs, read_lora
from .adapters.groups import loaded
from .engine.miniature import shipped_adapters
from .engine.wanted_prompt import problem_of_weights
from .schema import (
    PreferenceType,
    RewardLoRAsType,
    kl_scale_input,
    make_schema,
    preference_input,
    reward_loras_input,
    weight_input,
)

FIRST, LATER = range(1, 5), range(5, 9)
"""The numbers of the slots that every workflow has, and of those that were added later and are optional."""
SLOTS = (*FIRST, *LATER)
NONE = "None"
SCALES = AS_COMFYUI, AS_TRAINED = "as ComfyUI", "as trained"
"""Whether a factor alpha / rank that only the header has is left out, as ComfyUI does, or applied."""
NO_LORA = "No LoRA is chosen: choose at least one in Load Reward LoRAs."
UNLINKED = object()
"""The default of an input that has no link when inputs are validated."""


class LoadRewardLoRAs(io.ComfyNode):
    """Up to eight adapter files, in the order of their preference weights; chain for more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="LoadRewardLoRAs",
            display_name="Load Reward LoRAs",
            description="Choose the LoRA adapters to blend. Any LoRA works, not only reward-tuned ones. Their order is the order of the preference weights.",
            search_aliases=[
                "lora",
                "lora stack",
                "lora loader",
                "multi lora",
                "load loras",
                "diffusion blend",
                "adapters",
            ],
            inputs=[
                *(part for number in FIRST for part in _lora_inputs(number)),
                reward_loras_input(optional=True, tooltip="Adapters from another Load Reward LoRAs; they come first."),
                *(_switch_input(number) for number in FIRST),
                *(part for number in LATER for part in [*_lora_inputs(number, optional=True), _switch_input(number)]),
                _scale_input(),
            ],
            outputs=[RewardLoRAsType.Output(display_name="reward_loras", tooltip="The adapters, in order.")],
        )

    @classmethod
    def execute(cls, reward_loras: RewardLoRAs | None = None, **inputs: Any) -> io.NodeOutput:
        chosen = [_chosen(inputs, number) for number in SLOTS]
        as_trained = inputs.get("scale", AS_COMFYUI) == AS_TRAINED
        adapters = tuple(read_lora(file_path(file), strength, as_trained) for file, strength in chosen if file != NONE)
        last = max((i for i, number in enumerate(SLOTS, 1) if inputs.get(f"lora_{number}", NONE) != NONE), default=0)
        slots: Slots = [[file != NONE for file, _ in chosen[:last]]]
        loras = loaded(adapters, slots, reward_loras)
        if not loras.adapters:
            raise ValueError(NO_LORA)
        return io.NodeOutput(loras)

    @classmethod
    def validate_inputs(
        cls,
        lora_1: str | None,
        lora_2: str | None,
        lora_3: str | None,
        lora_4: str | None,
        lora_5: str | None = NONE,
        lora_6: str | None = NONE,
        lora_7: str | None = NONE,
        lora_8: str | None = NONE,
        reward_loras: Any = UNLINKED,
    ) -> bool | str:
        """Find mistakes before anything runs. The host gives None for an input with a link."""
        files = (lora_1, lora_2, lora_3, lora_4, lora_5, lora_6, lora_7, lora_8)
        chosen = [file for file in files if file != NONE]
        missing = sorted({file for file in chosen if file is not None} - set(adapter_files()))
        if missing:
            return (
                f"{', '.join(missing)}: no such file in the loras folder. Choose another LoRA, or put the file there."
            )
        if not chosen and reward_loras is UNLINKED:
            return NO_LORA
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """A file that was trained on is read again. Hashed: the host writes this into every image, and paths are private."""
        files = [_chosen(inputs, number)[0] for number in SLOTS]
        return fingerprint(file_path(file) for file in files if file != NONE)


class PreferenceWeights(io.ComfyNode):
    """How much of each adapter, and how far from the base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceWeights",
            display_name="Preference Weights",
            description="How much of each adapter (the weights count relative to their sum) and how far from the base model: KL scale 0 is the base, 1 the blend, beyond 1 exaggerates.",
            search_aliases=[
                "preference",
                "lora weights",
                "mix loras",
                "style mix",
                "style slider",
                "diffusion blend",
                "kl scale",
            ],
            inputs=[
                *(_weight_input(number, default) for number, default in enumerate((0.5, 0.5, 0.0, 0.0), start=1)),
                kl_scale_input(
                    "kl_scale",
                    1.0,
                    "Distance from the base model: 0 is the base, 1 the blend of the adapters, above 1 exaggerates, below 0 goes the other way.",
                ),
                reward_loras_input(
                    optional=True,
                    tooltip="Connect the adapters to check their number here, before the model is loaded.",
                ),
                preference_input(
                    tooltip="Another Preference Weights; its weights come first (for more than eight adapters).",
                ),
                *(_weight_input(number, 0.0, optional=True) for number in LATER),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
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
        weight_5: float = 0.0,
        weight_6: float = 0.0,
        weight_7: float = 0.0,
        weight_8: float = 0.0,
    ) -> io.NodeOutput:
        weights = (weight_1, weight_2, weight_3, weight_4, weight_5, weight_6, weight_7, weight_8)
        links = () if reward_loras is None else (reward_loras.named_slots,)
        result = Preference(weights, kl_scale, nodes=(len(weights),), links=links)
        if preference is not None:
            result = preference.followed_by(result)
        if reward_loras is not None and not _is_continued(cls):
            reward_loras.coefficients(result)  # an error is raised here and not after the model is loaded
        return io.NodeOutput(result)

    @classmethod
    def validate_inputs(cls, weight_1: float | None) -> bool | str:
        """Find weights without an adapter before anything runs. The host leaves the named input's own check to this."""
        if weight_1 is not None and not 0 <= weight_1 <= 1:
            return f"weight_1 is {weight_1}: it must be from 0 to 1."
        return problem_of_weights(None if cls.hidden is None else cls.hidden.unique_id) or True


def _is_continued(node: type[io.ComfyNode]) -> bool:
    """Whether another Preference Weights of the running prompt follows, so that this node's weights are only some of all."""
    if node.hidden is None or not node.hidden.prompt:
        return False
    followers = [item.get("inputs", {}).get("preference") for item in node.hidden.prompt.values() if _is_weights(item)]
    return any(isinstance(link, list) and link[:1] == [node.hidden.unique_id] for link in followers)


def _is_weights(item: dict[str, Any]) -> bool:
    return item.get("class_type") == "PreferenceWeights"


def file_path(file: str) -> str:
    """A chosen adapter's file: in the host's loras folders, or one that comes with the miniature."""
    path = folder_paths.get_full_path("loras", file)
    if path is None:
        path = shipped_adapters().get(file)
    return str(path or folder_paths.get_full_path_or_raise("loras", file))


def fingerprint(paths: Iterable[str]) -> str:
    """A text that changes when one of the files is written again. It names none of them."""
    state = [(path, Path(path).stat().st_mtime_ns, Path(path).stat().st_size) for path in paths]
    return hashlib.sha256(repr(state).encode()).hexdigest()


def adapter_files() -> list[str]:
    """The files that may be chosen."""
    files = [file for file in folder_paths.get_filename_list("loras") if file.lower().endswith(ENDINGS)]
    return list(dict.fromkeys([*files, *shipped_adapters()]))


def _chosen(inputs: dict[str, Any], number: int) -> tuple[str, float]:
    """A slot's file and strength; no file where the slot is switched off."""
    file = inputs.get(f"lora_{number}", NONE) if inputs.get(f"on_{number}", True) else NONE
    return file, inputs.get(f"strength_{number}", 1.0)


def _switch_input(number: int) -> Any:
    return io.Boolean.Input(
        f"on_{number}",
        default=True,
        optional=True,
        tooltip=f"Whether adapter {number} takes part. Switched off, its weight counts as 0 and the others keep their proportions.",
    )


def _lora_inputs(number: int, optional: bool = False) -> list[Any]:
    options = [NONE, *adapter_files()]
    return [
        io.Combo.Input(
            f"lora_{number}",
            options=options,
            default=NONE,
            optional=optional,
            tooltip=f"Adapter {number}, from the loras folder (.safetensors or .sft); weight_{number} is its weight.",
        ),
        io.Float.Input(
            f"strength_{number}",
            default=1.0,
            optional=optional,
            min=-20.0,
            max=20.0,
            step=0.01,
            round=0.001,
            tooltip=f"Factor on adapter {number}'s whole update; 1 as trained.",
        ),
    ]


def _scale_input() -> Any:
    return io.Combo.Input(
        "scale",
        options=list(SCALES),
        default=AS_COMFYUI,
        optional=True,
        tooltip="For files of which only the header has the factor alpha / rank (PEFT, diffusers). as ComfyUI: without the factor, as Load LoRA. as trained: with it.",
    )


def _weight_input(number: int, default: float, optional: bool = False) -> Any:
    tooltip = f"How much of adapter {number}, relative to the sum of all weights."
    return weight_input(number, default, tooltip, optional)
