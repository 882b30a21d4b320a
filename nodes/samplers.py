"""The sampler nodes: ComfyUI's KSampler on a blended model, and the MSDDA sampler."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..blending.equal_preference import EqualPreference
from ..blending.plans import Planner, make_planner
from ..blending.preference import AnyPreference
from ..blending.schedules import Coefficients, CoefficientSchedule
from ..blending.slots import ignored_weights, misplaced_weights, weight_places
from .adapters.files import RewardLoRAs
from .adapters.groups import note_stacked
from .engine.attach import attach
from .engine.metadata import RECORDED, record_blend
from .engine.msdda import sample_with_msdda
from .engine.notices import notify
from .schema import (
    Sampling,
    SamplingWithoutSampler,
    check_finite,
    draws_input,
    kl_scale_input,
    make_schema,
    model_input,
    preference_input,
    reward_loras_input,
    sampling_inputs,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BlendedKSampler(io.ComfyNode):
    """DB-MPA: every adapter's prediction at every step, blended by the preference; with the KL scale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BlendedKSampler",
            display_name="Blended KSampler",
            description="KSampler that blends the adapters' predictions at every step (DB-MPA): one model call per adapter.",
            search_aliases=[
                "diffusion blend",
                "db-mpa",
                "ksampler",
                "mix loras",
                "merge lora",
                "multi lora",
                "style mix",
            ],
            inputs=[model_input(), reward_loras_input(), preference_input(), *sampling_inputs()],
            hidden=list(RECORDED),
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward_loras: RewardLoRAs,
        preference: AnyPreference | None = None,
        **sampling: Unpack[Sampling],
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        note_stacked("blend", reward_loras)
        planner = make_planner("blend", coefficients_of(preference, reward_loras))
        record_blend(cls, "blend", preference, reward_loras)
        return io.NodeOutput(sample_blended(model, reward_loras, planner, **sampling))


class KLScaleSampler(io.ComfyNode):
    """DB-KLA: how far from the base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="KLScaleSampler",
            display_name="KL Scale Sampler",
            description="KSampler that moves between the base model (KL scale 0) and the adapters (1), and beyond (DB-KLA).",
            search_aliases=["diffusion blend", "db-kla", "ksampler", "lora strength"],
            inputs=[
                model_input(),
                reward_loras_input(),
                *sampling_inputs(),
                kl_scale_input(
                    "kl_scale",
                    1.0,
                    "Distance from the base model: 0 is the base, 1 the adapters, above 1 exaggerates, below 0 goes the other way.",
                ),
                preference_input(
                    tooltip="The adapters' weights; equal ones without it. The KL scale of this node counts.",
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
        kl_scale: float,
        preference: AnyPreference | None = None,
        **sampling: Unpack[Sampling],
    ) -> io.NodeOutput:
        wanted = (EqualPreference() if preference is None else preference).at_kl_scale(kl_scale)
        note_stacked("blend", reward_loras)
        planner = make_planner("blend", coefficients_of(wanted, reward_loras))
        record_blend(cls, "blend", wanted, reward_loras)
        return io.NodeOutput(sample_blended(model, reward_loras, planner, **sampling))


class StochasticAdapterSampler(io.ComfyNode):
    """DB-MPA-LS: one adapter drawn per step and image, at the cost of the base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="StochasticAdapterSampler",
            display_name="Stochastic Adapter Sampler",
            description="KSampler that uses one adapter per step, drawn by the preference (DB-MPA-LS): one model call per step however many adapters.",
            search_aliases=["diffusion blend", "db-mpa-ls", "ksampler", "multi lora", "fast lora blend"],
            inputs=[model_input(), reward_loras_input(), preference_input(), *sampling_inputs(), draws_input()],
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
        draws: str,
        **sampling: Unpack[Sampling],
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        note_stacked("stochastic", reward_loras)
        planner = make_planner("stochastic", coefficients_of(preference, reward_loras), draws)
        record_blend(cls, "stochastic", preference, reward_loras, draws=draws)
        return io.NodeOutput(sample_blended(model, reward_loras, planner, **sampling))


class MSDDASampler(io.ComfyNode):
    """MSDDA: the product of the adapters' Gaussian steps, with a noise scale each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="MSDDASampler",
            display_name="MSDDA Sampler",
            description="Ancestral sampler that fuses the adapters' Gaussian steps in closed form (MSDDA). With equal etas it is Blended KSampler with euler_ancestral.",
            search_aliases=["diffusion blend", "msdda", "ksampler"],
            inputs=[
                model_input(),
                reward_loras_input(),
                preference_input(),
                *sampling_inputs(with_sampler=False),
                *(_eta_input(number) for number in range(1, 5)),
                io.Boolean.Input(
                    "renormalise",
                    default=False,
                    tooltip="Different etas leave less noise than the schedule expects; this tops it up.",
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
        eta_1: float,
        eta_2: float,
        eta_3: float,
        eta_4: float,
        renormalise: bool,
        **sampling: Unpack[SamplingWithoutSampler],
    ) -> io.NodeOutput:
        preference = or_equal(preference)
        note_stacked("msdda", reward_loras)
        coefficients = coefficients_of(preference, reward_loras)
        shares = reward_loras.coefficients(preference.at_kl_scale(1.0))
        etas = _by_adapter((eta_1, eta_2, eta_3, eta_4), reward_loras)
        record_blend(cls, "msdda", preference, reward_loras, etas=list(etas), renormalise=renormalise)
        latent = sample_with_msdda(model, reward_loras, coefficients, shares, etas, renormalise, **sampling)
        return io.NodeOutput(latent)


def or_equal(preference: AnyPreference | None) -> AnyPreference:
    """Equal weights, with a notice, where the graph gives no preference."""
    if preference is not None:
        return preference
    notify("No preference is connected, or it is bypassed: all adapters count equally.")
    return EqualPreference()


def coefficients_of(preference: AnyPreference, loras: RewardLoRAs) -> Coefficients | CoefficientSchedule:
    """The adapters' affine coefficients; says so where a weight belongs to an empty slot or unequal KL weights change them."""
    coefficients = loras.coefficients(preference)
    parts = preference.parts
    ignored = {
        name
        for part in parts
        for name in ignored_weights(part.weights, part.nodes, part.loaders_of_nodes(loras.loaders, loras.names))
    }
    misplaced = {
        name
        for part in parts
        for name in misplaced_weights(part.weights, part.nodes, part.links, loras.loaders, loras.names)
    }
    if misplaced:
        notify(
            "Preference Weights is connected to other adapters than the node that blends: "
            f"{', '.join(sorted(misplaced))}. Connect both to the same Load Reward LoRAs."
        )
    if ignored:
        notify(f"No adapter is in the slot of {', '.join(sorted(ignored))}: it counts as 0.")
    known = {alpha for alpha in loras.kl_weights if alpha is not None}
    if len(known) > 1:
        listed = ", ".join(
            f"{name} {'unknown' if alpha is None else format(alpha, 'g')}"
            for name, alpha in zip(loras.names, loras.kl_weights, strict=True)
        )
        unknown = "" if None not in loras.kl_weights else " An unknown one counts with the mean of the others."
        notify(
            f"The adapters were trained with unequal KL weights ({listed}), so their weights are multiplied by them and then "
            f"divided by the sum.{unknown}"
        )
    return coefficients


def sample_blended(model: Any, loras: RewardLoRAs, planner: Planner, **sampling: Unpack[Sampling]) -> dict[str, Any]:
    """The host's KSampler, previews, progress bar and all, on the blended model."""
    check_finite(cfg=sampling["cfg"], denoise=sampling["denoise"])
    # The host's module, not this package; it imports much, so only when sampling.
    common_ksampler: Any = importlib.import_module("nodes").common_ksampler
    options = dict(sampling)
    latent = options.pop("latent_image")
    blended = attach(model, loras, planner, images=sampling["latent_image"].get("batch_index"))
    return common_ksampler(blended, latent=latent, **options)[0]


def _by_adapter(etas: Sequence[float], loras: RewardLoRAs) -> tuple[float, ...]:
    """The noise scale of every adapter: eta i belongs to slot i, as the weights do."""
    return tuple(1.0 if place is None else etas[place] for place in weight_places(loras.loaders, (len(etas),)))


def _eta_input(number: int) -> Any:
    return io.Float.Input(
        f"eta_{number}",
        default=1.0,
        min=0.05,
        max=2.0,
        step=0.05,
        round=0.001,
        tooltip=f"Noise scale of adapter {number}'s step. The less noise, the more say it has. Adapters past the fourth use 1.",
    )
