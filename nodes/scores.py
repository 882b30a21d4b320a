"""The nodes Load Reward Model and Score Images."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .engine.reward_models import (
    AUTOMATIC,
    MINIATURE,
    REWARD_OPTIONS,
    RewardModel,
    load_reward_model,
    reward_folders,
    score_images,
)
from .engine.score_table import Scores
from .schema import RewardModelType, ScoresType, make_schema


class LoadRewardModel(io.ComfyNode):
    """A reward by name, its model from this machine unless a download is asked for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="LoadRewardModel",
            display_name="Load Reward Model",
            description="Choose what images are scored by. Nothing is downloaded unless you allow it.",
            search_aliases=[
                "image reward",
                "pickscore",
                "clip score",
                "aesthetic",
                "aesthetic score",
                "hps",
                "diffusion blend",
            ],
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=list(REWARD_OPTIONS),
                    default="colourfulness",
                    tooltip="What images are scored by. JPEG size, colourfulness and the miniature's rewards need no model; the others load one. vila does not run in ComfyUI any more.",
                ),
                io.Combo.Input(
                    "model_folder",
                    options=[AUTOMATIC, *reward_folders()],
                    default=AUTOMATIC,
                    tooltip="Where the reward's model lies: a folder in models/diffusion_blend. automatic: the one named like the reward, else this machine's Hugging Face cache.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    tooltip="Fetch the model from the Hugging Face hub if it is not on this machine. While this is off, the error says what would be fetched, how large it is and under which licence.",
                ),
            ],
            outputs=[RewardModelType.Output(display_name="reward_model", tooltip="For Score Images.")],
        )

    @classmethod
    def execute(cls, reward: str, model_folder: str, allow_download: bool) -> io.NodeOutput:
        return io.NodeOutput(load_reward_model(reward, model_folder, allow_download))


class ScoreImages(io.ComfyNode):
    """One number an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="ScoreImages",
            display_name="Score Images",
            description="Score every image with a reward; larger is better. Chain several for several rewards.",
            search_aliases=["rate", "reward", "quality", "aesthetic score", "image score", "diffusion blend"],
            inputs=[
                io.Image.Input("images", tooltip="The images to score."),
                RewardModelType.Input("reward_model", tooltip="What they are scored by, from Load Reward Model."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the images should show: the prompt they were made with. Aesthetic, JPEG and colour rewards do not look at it.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What the scores are called; empty takes the reward's name.",
                ),
                ScoresType.Input(
                    "scores",
                    optional=True,
                    tooltip="Scores of the same images by another reward; this one's are added to them.",
                ),
            ],
            outputs=[
                ScoresType.Output(
                    display_name="scores", tooltip="For Keep Best, Preference Grid or another Score Images."
                ),
                io.String.Output(display_name="summary", tooltip="The scores as a table, images counted from 0."),
            ],
        )

    @classmethod
    def execute(
        cls, images: Tensor, reward_model: RewardModel, prompt: str, name: str, scores: Scores | None = None
    ) -> io.NodeOutput:
        name = name.strip() or reward_model.name.removeprefix(MINIATURE)
        values = score_images(reward_model, images, prompt)
        result = Scores((name,), (tuple(values),)) if scores is None else scores.followed_by(name, values)
        return io.NodeOutput(result, result.text())
