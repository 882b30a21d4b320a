"""The node Blend Text Encoder: text encodings with every adapter's own text-encoder weights."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..blending.preference import AnyPreference, Preference
from .adapters.files import RewardLoRAs
from .adapters.text_encoders import blended_clip
from .engine.notices import notify
from .schema import make_schema, preference_input, reward_loras_input


class BlendTextEncoder(io.ComfyNode):
    """A CLIP for adapters whose files change the text encoder, too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BlendTextEncoder",
            display_name="Blend Text Encoder",
            description="For LoRAs with text-encoder weights: texts encoded behind this node carry every adapter's own encoding.",
            search_aliases=["diffusion blend", "lora clip", "text encoder lora", "clip lora"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder. LoRAs already on it belong to the base."),
                reward_loras_input(tooltip="The adapters, the same as on the blended model."),
                preference_input(
                    tooltip="Only for the method soup: the same preference as on the blended model.",
                ),
            ],
            outputs=[io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode, both prompts.")],
        )

    @classmethod
    def execute(cls, clip: Any, reward_loras: RewardLoRAs, preference: AnyPreference | None = None) -> io.NodeOutput:
        soup = None
        if preference is not None:
            if not isinstance(preference, Preference):
                raise ValueError(
                    "A preference that moves over the run or differs by region has no single encoding: connect a plain "
                    "Preference Weights to Blend Text Encoder, and choose the method blend."
                )
            plain = preference.arranged(reward_loras.loaders, reward_loras.names)
            soup = tuple(plain.coefficients(reward_loras.names, reward_loras.kl_weights))
        blended, having, skipped = blended_clip(clip, reward_loras, soup)
        if having:
            said = f"With text-encoder weights: {', '.join(having)}."
        else:
            said = "None of the adapters has weights for this text encoder, so Blend Text Encoder has no effect here."
        notify("\n".join([said, *skipped]))
        return io.NodeOutput(blended)
