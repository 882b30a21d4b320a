"""Nodes that make adapters of other packs' loaders: Reward LoRA from Model, Reward LoRAs from Stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .adapters.chain import adapter_of_chain
from .adapters.files import RewardLoRAs, read_lora
from .adapters.groups import loaded
from .engine.server import running_prompts
from .inputs import NONE, file_path, fingerprint
from .schema import RewardLoRAsType, make_schema, reward_loras_input

LoraStackType = io.Custom("LORA_STACK")
"""The list of (file, strength on the model, strength on the text encoder) that several packs share."""


class RewardLoRAFromModel(io.ComfyNode):
    """A chain of other packs' LoRA nodes as one adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="RewardLoRAFromModel",
            display_name="Reward LoRA from Model",
            description="Makes one adapter of all that LoRA nodes add to a MODEL, so that the loaders of any pack can be used.",
            search_aliases=["diffusion blend", "power lora loader", "lora manager", "lora block weight", "merge loras"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL before the LoRA nodes."),
                io.Model.Input("model_with_loras", tooltip="The same MODEL after the LoRA nodes."),
                io.String.Input("name", default="chain", tooltip="How the adapter is named on other nodes."),
                reward_loras_input(optional=True, tooltip="Adapters from another node; they come first."),
            ],
            outputs=[RewardLoRAsType.Output(display_name="reward_loras", tooltip="The adapters, in order.")],
        )

    @classmethod
    def execute(
        cls, model: Any, model_with_loras: Any, name: str, reward_loras: RewardLoRAs | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(_joined(reward_loras, (adapter_of_chain(model, model_with_loras, name),)))


class RewardLoRAsFromStack(io.ComfyNode):
    """Another pack's stack of LoRA files as adapters."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="RewardLoRAsFromStack",
            display_name="Reward LoRAs from Stack",
            description="Makes an adapter of every LoRA file in another pack's LORA_STACK, with its strengths on the model.",
            search_aliases=["diffusion blend", "lora stack", "lora stacker", "efficiency"],
            inputs=[
                LoraStackType.Input("lora_stack", tooltip="The stack: files with their strengths."),
                reward_loras_input(optional=True, tooltip="Adapters from another node; they come first."),
            ],
            outputs=[RewardLoRAsType.Output(display_name="reward_loras", tooltip="The adapters, in order.")],
        )

    @classmethod
    def execute(cls, lora_stack: Any, reward_loras: RewardLoRAs | None = None) -> io.NodeOutput:
        entries = [entry for entry in lora_stack or () if entry and entry[0] != NONE]
        if not entries:
            raise ValueError("The LORA_STACK holds no LoRA: choose at least one in the node that makes it.")
        adapters = tuple(
            read_lora(file_path(file), float(strength), strength_clip=float(clip[0]) if clip else None)
            for file, strength, *clip in entries
        )
        return io.NodeOutput(_joined(reward_loras, adapters))

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """A file that was trained on is read again.

        The host does not give the stack here, because another node makes it. So every file that the running prompt names counts.
        """
        prompts = running_prompts()
        named = "" if prompts is None else json.dumps(prompts, ensure_ascii=False, default=str)
        files = [file for file in folder_paths.get_filename_list("loras") if not named or Path(file).stem in named]
        paths = (folder_paths.get_full_path("loras", file) for file in files)
        return fingerprint(path for path in paths if path is not None)


def _joined(earlier: RewardLoRAs | None, adapters: tuple[Any, ...]) -> RewardLoRAs:
    return loaded(adapters, [[True] * len(adapters)], earlier)
