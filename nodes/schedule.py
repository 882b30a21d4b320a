"""The node Preference Schedule: a preference that moves over the run."""

from __future__ import annotations

from comfy_api.latest import io

from ..blending.changing_preference import PreferenceSchedule
from ..blending.preference import AnyPreference
from ..blending.schedules import CURVES
from .samplers import or_equal
from .schema import PreferenceType, check_finite, make_schema, preference_input

EQUAL = "Without it all adapters count equally."


class PreferenceScheduleNode(io.ComfyNode):
    """From one preference to another over a part of the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceSchedule",
            display_name="Preference Schedule",
            description="Move from one preference to another while the image is made: "
            "early steps shape the composition, late ones the detail.",
            search_aliases=[
                "diffusion blend",
                "preference over time",
                "weight schedule",
                "lora schedule",
                "prompt schedule lora",
                "scheduled lora",
            ],
            inputs=[
                preference_input("preference_start", tooltip=f"The preference at the start of the run. {EQUAL}"),
                preference_input("preference_end", tooltip=f"The preference at the end of the run. {EQUAL}"),
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    default="linear",
                    tooltip="linear: evenly. cosine: slow at both ends. step: one until the middle, then the other.",
                ),
                _percent_input(
                    "start_percent", 0.0, "Until here only the first preference counts: 0 is the first step."
                ),
                _percent_input("end_percent", 1.0, "From here only the second preference counts: 1 is the last step."),
            ],
            outputs=[PreferenceType.Output(display_name="preference", tooltip="The moving preference.")],
        )

    @classmethod
    def execute(
        cls,
        preference_start: AnyPreference | None = None,
        preference_end: AnyPreference | None = None,
        *,
        curve: str,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        check_finite(start_percent=start_percent, end_percent=end_percent)
        start, end = or_equal(preference_start), or_equal(preference_end)
        return io.NodeOutput(PreferenceSchedule(start, end, curve, start_percent, end_percent))


def _percent_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip)
