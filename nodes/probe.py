"""The node Blend Probe: whether the blend differs from plain stacking, and the cost of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..blending.preference import AnyPreference
from .adapters.files import RewardLoRAs
from .engine.metadata import RECORDED, record_blend
from .engine.probe import Probe, probe_run
from .samplers import coefficients_of
from .schema import SamplingOfWholeRuns, make_schema, model_input, preference_input, reward_loras_input, sampling_inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
        cls, model: Any, reward_loras: RewardLoRAs, preference: AnyPreference, **sampling: Unpack[SamplingOfWholeRuns]
    ) -> io.NodeOutput:
        figure = empty_figure()
        probe, latent = probe_run(model, reward_loras, coefficients_of(preference, reward_loras), **sampling)
        record_blend(cls, "blend", preference, reward_loras)
        return io.NodeOutput(gap_image(figure, probe), verdict(probe), probe.mean_gap, latent)


def verdict(probe: Probe) -> str:
    """What a probe found, in two plain sentences."""
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
    return (
        f"{found} Measured here, one step takes {seconds['blend']} for the blend ({probe.calls} model calls), "
        f"{seconds['soup']} for plain stacking and {seconds['base']} for the base model."
    )


def empty_figure() -> Figure:
    """A figure of matplotlib's without its global state.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(
            "Blend Probe draws with matplotlib, which is not installed: run pip install -r requirements.txt in this extension's "
            "folder, or let the Manager do it."
        ) from error
    return Figure(figsize=(6, 3.5), dpi=120, layout="constrained")


def gap_image(figure: Figure, probe: Probe) -> Tensor:
    """The gap over the steps, drawn.

    Returns:
        IMAGE, float[1, H, W, 3] in [0, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    axes.plot([step + 1 for step in probe.steps], probe.gaps, marker="o", markersize=3, label="gap")
    axes.axhline(probe.mean_gap, linestyle=":", color="tab:blue", label=f"mean {probe.mean_gap:.3f}")
    axes.axhline(SAME, linestyle="--", color="tab:gray", label=f"the same below {SAME}")
    axes.set(xlabel="step", ylabel="linearity gap", title="What plain stacking misses of the adapters' effect")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(1, height, width, 4)
    return pixels[..., :3].float() / 255
