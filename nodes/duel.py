"""The nodes Preference Duel and Preference Duel View: from votes between two pictures to a preference."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui
from torch import Tensor

from ..blending.preference import AnyPreference, Preference
from .adapters.files import RewardLoRAs
from .engine.duels import LARGEST_SEED, SAME_NOISE, SEED_MODES, Duel, make_duel, save_pictures, seed_of
from .schema import DuelType, PreferenceType, check_finite, kl_scale_input, make_schema, reward_loras_input

ALIASES = ["find my taste", "which is better", "compare two", "a/b test", "vote", "rate images", "diffusion blend"]


class PreferenceDuel(io.ComfyNode):
    """The two preferences that a vote says most about."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceDuel",
            display_name="Preference Duel",
            description="Find the preference you like by choosing between two pictures, about ten times. Every node after this one runs twice; show the two pictures in Preference Duel View.",
            search_aliases=ALIASES,
            inputs=[
                reward_loras_input(tooltip="The adapters, two or more, from Load Reward LoRAs."),
                io.String.Input(
                    "votes",
                    default="",
                    multiline=True,
                    tooltip="Your votes; Preference Duel View writes them here. You can type them: 1 or 2 for the better picture, 0 for equal, x for both bad, then run again. Empty begins anew.",
                ),
                kl_scale_input("kl_scale_from", 0.5, "The smallest KL scale that is tried."),
                kl_scale_input(
                    "kl_scale_to", 1.5, "The largest KL scale that is tried. The same as the smallest: it stays there."
                ),
                io.Combo.Input(
                    "seed_mode",
                    options=list(SEED_MODES),
                    default=SAME_NOISE,
                    tooltip="same noise: every pair has first_seed. new noise: every pair has another seed, so that the preference does not fit one picture only. Connect the output seed to the sampler.",
                ),
                io.Int.Input("first_seed", default=0, min=0, max=LARGEST_SEED, tooltip="The seed of the first pair."),
                PreferenceType.Input(
                    "start",
                    optional=True,
                    tooltip="Where to begin, from Preference Weights. Take it in the view writes the found preference there.",
                ),
            ],
            outputs=[
                PreferenceType.Output(
                    display_name="preferences",
                    is_output_list=True,
                    tooltip="The two preferences to compare, as a list.",
                ),
                io.Int.Output(display_name="seed", tooltip="The seed of both pictures, for the sampler."),
                PreferenceType.Output(display_name="best", tooltip="The preference that the votes so far favour."),
                DuelType.Output(display_name="duel", tooltip="For Preference Duel View."),
            ],
        )

    @classmethod
    def execute(
        cls,
        reward_loras: RewardLoRAs,
        votes: str,
        kl_scale_from: float,
        kl_scale_to: float,
        seed_mode: str,
        first_seed: int,
        start: AnyPreference | None = None,
    ) -> io.NodeOutput:
        check_finite(kl_scale_from=kl_scale_from, kl_scale_to=kl_scale_to)
        begin = None if start is None else reward_loras.arrange(start)
        if begin is not None and not isinstance(begin, Preference):
            raise ValueError("start changes over time or space: connect plain Preference Weights.")
        duel = make_duel(reward_loras.names, votes, (kl_scale_from, kl_scale_to), begin)
        for preference in duel.pair:  # an error is raised here and not after the first picture
            reward_loras.coefficients(preference)
        duel = replace(duel, files=tuple(adapter.file for adapter in reward_loras))
        return io.NodeOutput(list(duel.pair), seed_of(first_seed, seed_mode, duel.count), duel.best, duel)


class PreferenceDuelView(io.ComfyNode):
    """Shows the two pictures and takes the vote."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceDuelView",
            display_name="Preference Duel View",
            description="Shows the two pictures of a Preference Duel side by side. Click the better one: the vote is written into the duel, and the next pair is made.",
            search_aliases=ALIASES,
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The two pictures, or the two batches, that the duel's preferences made."
                ),
                DuelType.Input("duel", tooltip="The output duel of Preference Duel."),
                io.Boolean.Input(
                    "keep_pictures",
                    default=False,
                    tooltip="Also saves every picture in output/diffusion_blend_taste, so that diffusion-blend taste can train a reward on your votes.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[],
        )

    @classmethod
    def execute(cls, images: list[Tensor], duel: list[Duel], keep_pictures: list[bool]) -> io.NodeOutput:
        if len(images) != 2:
            raise ValueError(
                f"The view shows 2 pictures and got {len(images)}: connect the images that the two preferences of one "
                "Preference Duel made, and no other list."
            )
        if keep_pictures[0]:
            for batch, option in zip(images, duel[0].texts, strict=True):
                save_pictures(batch, option)
        sides = [ui.PreviewImage(batch, cls=cls).as_dict()["images"] for batch in images]
        # Not under "images": the front end would show these once more, one by one.
        return io.NodeOutput(ui={"duel": [duel[0].described() | {"sides": [list(side) for side in sides]}]})
