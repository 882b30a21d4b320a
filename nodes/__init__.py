"""ComfyUI's side: node classes here, their mechanisms in adapters/, engine/ and figures/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .bake import BakeBlend
from .blend_model import BlendModel
from .corrected import CorrectedBlendSampler
from .duel import PreferenceDuel, PreferenceDuelView
from .engine import metadata, previews, template_names, wanted_prompt
from .from_model import RewardLoRAFromModel, RewardLoRAsFromStack
from .grid import PreferenceGrid
from .inputs import LoadRewardLoRAs, PreferenceWeights, adapter_files, file_path
from .keep_best import KeepBest
from .miniature import LoadMiniature
from .probe import BlendProbe
from .regional import RegionalPreferenceNode
from .samplers import BlendedKSampler, KLScaleSampler, MSDDASampler, StochasticAdapterSampler
from .schedule import PreferenceScheduleNode
from .scores import LoadRewardModel, ScoreImages
from .sweep import PreferenceSweep
from .text_encoder import BlendTextEncoder


class DiffusionBlendExtension(ComfyExtension):
    """What the host asks for the node classes."""

    async def on_load(self) -> None:
        metadata.install()
        wanted_prompt.install()
        template_names.install()
        previews.install(adapter_files, file_path)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadRewardLoRAs,
            PreferenceWeights,
            BlendModel,
            BlendedKSampler,
            KLScaleSampler,
            StochasticAdapterSampler,
            MSDDASampler,
            LoadMiniature,
            PreferenceSweep,
            PreferenceGrid,
            PreferenceScheduleNode,
            RegionalPreferenceNode,
            BlendProbe,
            LoadRewardModel,
            ScoreImages,
            KeepBest,
            RewardLoRAFromModel,
            RewardLoRAsFromStack,
            BlendTextEncoder,
            PreferenceDuel,
            PreferenceDuelView,
            CorrectedBlendSampler,
            BakeBlend,
        ]
