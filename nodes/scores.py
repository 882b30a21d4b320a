"""Score images with the trainer's rewards and the miniature's. The only file of the nodes that reaches into either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from .engine.score_table import Scores
from .schema import RewardModelType, ScoresType, make_schema

if TYPE_CHECKING:
    from ..rewards.protocol import Reward

REWARDS = (
    "image_reward", "pick_score", "clip_score", "hps_v2", "aesthetic",
    "jpeg_compressibility", "jpeg_incompressibility", "colourfulness", "vila",
)  # fmt: skip
"""The trainer's, by its names; written out so that listing them imports nothing."""
MINIATURE = "miniature."
MINIATURE_REWARDS = ("alignment", "colourfulness", "compressibility", "warmth", "brightness", "softness", "contrast")
NEED_A_PROMPT = ("image_reward", "pick_score", "clip_score", "hps_v2", MINIATURE + "alignment")
AUTOMATIC = "automatic"
FOLDER = "diffusion_blend"
BATCH = 8
"""Images scored at a time, as ``diffusion-blend score`` does."""


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward ready for use.

    Args:
        name: as chosen; the default name of its scores.
        reward: scores images.
        patcher: the host's ModelPatcher of its network, which waits on the offload device; None where there is none.
    """

    name: str
    reward: Reward
    patcher: Any


class LoadRewardModel(io.ComfyNode):
    """A reward by name, its model from this machine unless a download is asked for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="LoadRewardModel",
            display_name="Load Reward Model",
            description="Choose what images are scored by. Nothing is downloaded unless you allow it.",
            search_aliases=["image reward", "pickscore", "clip score", "aesthetic", "hps", "diffusion blend"],
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=[*REWARDS, *(MINIATURE + name for name in MINIATURE_REWARDS)],
                    default="colourfulness",
                    tooltip="JPEG size, colourfulness and the miniature's rewards need no model. The others load one; vila runs in a Python of its own.",
                ),
                io.Combo.Input(
                    "model_folder",
                    options=[AUTOMATIC, *_folders()],
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
        if reward.startswith(MINIATURE):
            return io.NodeOutput(RewardModel(reward, _miniature_reward(reward.removeprefix(MINIATURE)), None))
        return io.NodeOutput(load_reward(reward, _folder(reward, model_folder), allow_download))


class ScoreImages(io.ComfyNode):
    """One number an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="ScoreImages",
            display_name="Score Images",
            description="Score every image with a reward; larger is better. Chain several for several rewards.",
            search_aliases=["rate", "reward", "quality", "diffusion blend"],
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


def load_reward(name: str, folder: str | None, allow_download: bool) -> RewardModel:
    """One of the trainer's rewards; its network is given to the host's memory management.

    Args:
        name: one of `REWARDS`.
        folder: a local folder with its model, or None for this machine's cache.
        allow_download: permit fetching a model that is not there.

    Raises:
        ValueError: no such reward, a library is missing, or the model is not there and may not be fetched.
    """
    if name not in REWARDS:  # a linked value passes by the list of choices, and the trainer also knows module:function
        raise ValueError(f"There is no reward {name!r}: choose from {', '.join(REWARDS)}.")
    with _plain_words(name):
        from ..rewards.load import load_rewards
        from ..rewards.protocol import NetworkReward

        folders = {} if folder is None else {name: folder}
        cpu = torch.device("cpu")
        reward = load_rewards([name], folders, cpu, allow_download=allow_download)[name]
    patcher = None
    if isinstance(reward, NetworkReward):
        patcher = comfy.model_patcher.ModelPatcher(
            reward.network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    return RewardModel(name, reward, patcher)


def score_images(model: RewardModel, images: Tensor, prompt: str) -> list[float]:
    """Score a batch on the host's device; the host moves the network there, and away when it needs the memory.

    Args:
        model: the reward.
        images: float[B, H, W, 3 or 4] in 0..1; transparency is not looked at.
        prompt: of all of them.

    Returns:
        float[B], larger is better.

    Raises:
        ValueError: a reward that compares with the prompt got none, or gave something that is no number.
    """
    from ..rewards.protocol import score

    if model.name in NEED_A_PROMPT and not prompt.strip():
        raise ValueError(f"{model.name} judges how well an image shows its prompt: give Score Images the prompt.")
    pixels = images[..., :3].movedim(-1, 1).to("cpu", torch.float32).clamp(0, 1)
    if model.patcher is not None:
        comfy.model_management.load_models_gpu([model.patcher], force_full_load=True)
    values: list[float] = []
    for part in pixels.split(BATCH):
        comfy.model_management.throw_exception_if_processing_interrupted()
        values += score({model.name: model.reward}, part, [prompt] * len(part))[model.name].tolist()
    return values


def _miniature_reward(name: str) -> Reward:
    if name not in MINIATURE_REWARDS:
        raise ValueError(f"There is no reward {MINIATURE + name!r}: choose from {', '.join(MINIATURE_REWARDS)}.")
    from ..miniature.rewards import REWARDS as computed

    return computed[name]  # pyright: ignore[reportReturnType]  (its results are checked at every call)


@contextmanager
def _plain_words(name: str) -> Iterator[None]:
    """Say what to do here; the trainer's own messages speak of its command line."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == __name__.partition(".")[0]:
            raise
        raise ValueError(
            f"{name} needs {missing}, which is not installed. Install the training extra into ComfyUI's Python: "
            'pip install "diffusion-blend[training]". JPEG size, colourfulness and the miniature\'s rewards work without.'
        ) from error
    except ValueError as error:
        what = getattr(error, "what", None)
        if what is None:
            raise
        raise ValueError(
            f"The model of {name} is not on this machine: {what}. Switch on allow_download to fetch it, or put a copy "
            f"into {_models() / name}."
        ) from error


def _models() -> Path:
    return Path(folder_paths.models_dir) / FOLDER


def _folders() -> list[str]:
    models = _models()
    return sorted(path.name for path in models.iterdir() if path.is_dir()) if models.is_dir() else []


def _folder(reward: str, chosen: str) -> str | None:
    """The folder to read a reward's model from; None for the machine's cache."""
    folders = _folders()
    if chosen == AUTOMATIC:
        return str(_models() / reward) if reward in folders else None
    if chosen not in folders:
        raise ValueError(f"There is no folder {chosen!r} in {_models()}, only {', '.join(folders) or 'nothing'}.")
    return str(_models() / chosen)
