"""The node Regional Preference: another preference inside a mask."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..blending.changing_preference import RegionalPreference
from ..blending.preference import AnyPreference
from .samplers import or_equal
from .schema import PreferenceType, make_schema, preference_input


class RegionalPreferenceNode(io.ComfyNode):
    """One preference inside a mask, another outside; chain for more regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="RegionalPreference",
            display_name="Regional Preference",
            description="Another preference inside a mask: every latent pixel is blended by its own weights. "
            "Chain several for more regions.",
            search_aliases=[
                "diffusion blend",
                "preference mask",
                "regional weights",
                "regional lora",
                "lora mask",
                "area lora",
                "attention couple",
            ],
            inputs=[
                preference_input(
                    tooltip="The preference outside the mask; another Regional Preference for more regions."
                ),
                preference_input(
                    "regional_preference",
                    tooltip="The preference inside the mask. Without it all adapters count equally there.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the regional preference counts; greys mix. Any size: it is fitted to the latent.",
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=1024,
                    tooltip="Over how many of the mask's pixels its edge is softened; 0 is a hard edge.",
                ),
            ],
            outputs=[PreferenceType.Output(display_name="preference", tooltip="The preference with the region in it.")],
        )

    @classmethod
    def execute(
        cls,
        preference: AnyPreference | None = None,
        regional_preference: AnyPreference | None = None,
        *,
        mask: Tensor,
        feather: int,
    ) -> io.NodeOutput:
        outside, inside = or_equal(preference), or_equal(regional_preference)
        masks = mask.reshape(-1, *mask.shape[-2:])  # the host's masks come as [H, W], [B, H, W] or [B, 1, H, W]
        return io.NodeOutput(RegionalPreference(outside, inside, masks.float().clamp(0, 1), feather))
