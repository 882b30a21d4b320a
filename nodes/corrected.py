"""The node Corrected Blend Sampler: candidates of the blend, weighed by how far the adapters disagree along their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..blending.preference import AnyPreference
from .adapters.files import RewardLoRAs
from .engine.corrected import sample_with_correction
from .engine.metadata import RECORDED, record_blend
from .samplers import coefficients_of, or_equal
from .schema import (
    SamplingWithoutSampler,
    make_schema,
    model_input,
    preference_input,
    reward_loras_input,
    sampling_inputs,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CorrectedBlendSampler(io.ComfyNode):
    """The blend with path weights: several candidates for each image, one drawn at the end."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="CorrectedBlendSampler",
            display_name="Corrected Blend Sampler",
            description="Ancestral sampler that carries several candidates for each image and resamples them by path weights, which correct the blend of strong adapters. The time is that of as many blends.",
            search_aliases=["diffusion blend", "feynman-kac", "particles", "smc", "ksampler"],
            inputs=[
                model_input(),
                reward_loras_input(),
                preference_input(),
                *sampling_inputs(with_sampler=False),
                io.Int.Input(
                    "particles",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Candidates for each image. The time grows with them; 1 is the plain blend with euler_ancestral.",
                ),
                io.Float.Input(
                    "resample_below",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Candidates are resampled where their effective share falls below this. 0 never does, and only draws one at the end.",
                ),
            ],
            hidden=list(RECORDED),
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward_loras: RewardLoRAs,
        preference: AnyPreference | None = None,
        *,
        particles: int,
        resample_below: float,
        **sampling: Unpack[SamplingWithoutSampler],
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        coefficients = coefficients_of(preference, reward_loras)
        record_blend(cls, "corrected", preference, reward_loras, particles=particles, resample_below=resample_below)
        latent = sample_with_correction(model, reward_loras, coefficients, particles, resample_below, **sampling)
        return io.NodeOutput(latent)
