"""The node Blend Model: a blend on a MODEL, for any sampler node, guider or upscaler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..blending.plans import EARLY_SHARE, METHODS, make_planner
from ..blending.preference import AnyPreference
from .adapters.files import RewardLoRAs
from .adapters.groups import check_stacked, note_stacked
from .engine.attach import EVALUATIONS, attach
from .engine.metadata import RECORDED, record_blend
from .samplers import coefficients_of, or_equal
from .schema import draws_input, make_schema, model_input, preference_input, reward_loras_input


class BlendModel(io.ComfyNode):
    """The MODEL with a blend on it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BlendModel",
            display_name="Blend Model",
            description="Put a blend of adapters on a model, for any sampler, guider or upscaler.",
            search_aliases=[
                "diffusion blend",
                "lora blend",
                "merge lora",
                "mix lora",
                "multi lora",
                "model merge",
                "rewarded soup",
            ],
            inputs=[
                model_input(),
                reward_loras_input(),
                preference_input(),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="blend",
                    tooltip="blend: every adapter's prediction at every step, summed (one model call each). stochastic: one adapter drawn per step (one call). soup: the averaged weights (one call). early: blend in the first steps, which decide most of the image, soup after (about 1.5 calls for four adapters). stacked: one call, for adapters that were trained together for it; the files name their group.",
                ),
                draws_input(),
                io.Combo.Input(
                    "evaluation",
                    options=list(EVALUATIONS),
                    default="auto",
                    tooltip="sequential: one call after the other, least memory. batched: all in one call while memory allows. auto: sequential on a CPU, batched on a GPU when it fits.",
                ),
                io.Float.Input(
                    "early_share",
                    optional=True,  # prompts saved before it was there still run
                    default=EARLY_SHARE,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Only for early: the share of the steps that are blended. 0 is soup, 1 is blend.",
                ),
            ],
            hidden=list(RECORDED),
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the blend on it.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward_loras: RewardLoRAs,
        preference: AnyPreference | None = None,
        *,
        method: str,
        draws: str,
        evaluation: str,
        early_share: float = EARLY_SHARE,
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        if method == "stacked":
            check_stacked(reward_loras)
        elif method != "soup":
            note_stacked(method, reward_loras)
        planner = make_planner(method, coefficients_of(preference, reward_loras), draws, early_share)
        details = {"stochastic": {"draws": draws}, "early": {"early_share": early_share}}.get(method, {})
        record_blend(cls, method, preference, reward_loras, **details)
        return io.NodeOutput(attach(model, reward_loras, planner, evaluation))
