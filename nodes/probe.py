"""The node Blend Probe: whether the blend differs from plain stacking, and the cost of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..blending.preference import AnyPreference
from .adapters.files import RewardLoRAs
from .engine.metadata import RECORDED, record_blend
from .engine.probe import Probe, probe_run
from .figures.canvas import empty_figure
from .figures.drawing import tensor
from .figures.gap import gap_figure
from .samplers import coefficients_of, or_equal
from .schema import SamplingOfWholeRuns, make_schema, model_input, preference_input, reward_loras_input, sampling_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

SAME = 0.05
"""Below this mean gap plain stacking is said to give the same image."""


class BlendProbe(io.ComfyNode):
    """The linearity gap over the steps of one run, and what the methods cost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BlendProbe",
            display_name="Blend Probe",
            description="Is the blend worth it here? Compares it with plain LoRA stacking at every step, and times both.",
            search_aliases=["diffusion blend", "linearity gap", "compare blend"],
            inputs=[
                model_input(),
                reward_loras_input(),
                preference_input(),
                *sampling_inputs()[:-1],
            ],  # all but denoise
            hidden=list(RECORDED),
            outputs=[
                io.Image.Output(display_name="figure", tooltip="The linearity gap over the steps."),
                io.String.Output(display_name="verdict", tooltip="What was found, in two sentences."),
                io.Float.Output(display_name="mean_gap", tooltip="The mean gap; near 0, plain stacking is enough."),
                io.Latent.Output(display_name="latent", tooltip="The blend's denoised latent."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward_loras: RewardLoRAs,
        preference: AnyPreference | None = None,
        **sampling: Unpack[SamplingOfWholeRuns],
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        empty_figure(1, 1)  # a missing matplotlib is reported before the run
        probe, latent = probe_run(model, reward_loras, coefficients_of(preference, reward_loras), **sampling)
        record_blend(cls, "blend", preference, reward_loras)
        figure = gap_figure(probe.steps, probe.gaps, probe.mean_gap, SAME)
        return io.NodeOutput(tensor(figure), verdict(probe), probe.mean_gap, latent)


def verdict(probe: Probe) -> str:
    """What a probe found, in two plain sentences; in three where path weights were measured."""
    gap, steps = f"{probe.mean_gap:.1%}", len(probe.gaps)
    if probe.mean_gap < SAME:
        found = (
            f"Plain stacking gives the same image: its predictions miss {gap} of the adapters' effect, on average over "
            f"{steps} steps (the same means less than {SAME:.0%})."
        )
    else:
        found = (
            f"Blending changes it by {gap} of the adapters' effect compared with plain stacking, on average over {steps} "
            f"steps (less than {SAME:.0%} would count as the same)."
        )
    seconds = {method: f"{probe.seconds_per_step(method):.3g} s" for method in probe.seconds}
    text = (
        f"{found} Measured here, one step takes {seconds['blend']} for the blend ({probe.calls} model calls), "
        f"{seconds['soup']} for plain stacking and {seconds['base']} for the base model."
    )
    if probe.share is None or probe.log_weights is None:
        return text
    images = len(probe.log_weights)
    return (
        f"{text} By their path weights the blend's {images} images have an effective share of {probe.share:.0%} (at least "
        f"{1 / images:.0%}, where one image has all the weight): the nearer to 100 %, the nearer the blend is to the exact one, "
        f"and the less Corrected Blend Sampler would change."
    )
