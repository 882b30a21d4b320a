"""Rewards in the host: loaded by name, with their networks in the host's memory management."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import Tensor

from ...miniature.reward_names import READ_THE_PROMPT, REWARD_NAMES
from ...rewards.catalogue import CATALOGUE, MOVED

if TYPE_CHECKING:
    from ...rewards.protocol import Reward

MINIATURE = "miniature."
REWARD_OPTIONS = (*CATALOGUE, *MOVED, *(MINIATURE + name for name in REWARD_NAMES))
"""Every reward that the node offers. Names of earlier versions stay in the list, so that saved workflows still load."""

NEED_A_PROMPT = frozenset(
    [name for name, entry in CATALOGUE.items() if entry.reads_prompt] + [MINIATURE + name for name in READ_THE_PROMPT]
)
AUTOMATIC = "automatic"
FOLDER = "diffusion_blend"
BATCH = 8
"""Images that are scored at a time, as in ``diffusion-blend score``."""


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A loaded reward.

    Args:
        name: as chosen; the default name of its scores.
        reward: scores images.
        patcher: the host's ModelPatcher of the reward's network, on the offload device at first; None for rewards without
            a network.
    """

    name: str
    reward: Reward = field(repr=False)
    patcher: Any = field(repr=False)


def load_reward_model(name: str, model_folder: str, allow_download: bool) -> RewardModel:
    """Load a reward by the name that the node offers.

    Args:
        name: one of `REWARD_OPTIONS`.
        model_folder: a folder in ``models/diffusion_blend``, or `AUTOMATIC`.
        allow_download: permit fetching a model that is not on this machine.

    Raises:
        ValueError: there is no such reward or folder, the reward runs outside ComfyUI only, a library is missing, or the
            model is not there and may not be fetched.
    """
    if name.startswith(MINIATURE):
        return RewardModel(name, _miniature_reward(name.removeprefix(MINIATURE)), None)
    return load_reward(name, _folder(name, model_folder), allow_download)


def load_reward(name: str, folder: str | None, allow_download: bool) -> RewardModel:
    """Load a reward of the catalogue and give its network to the host's memory management.

    Args:
        name: of the catalogue.
        folder: a local folder with its model, or None for this machine's cache.
        allow_download: permit fetching a model that is not there.

    Raises:
        ValueError: there is no such reward, it runs outside ComfyUI only, a library is missing, or the model is not there
            and may not be fetched.
    """
    # A linked value is not checked against the node's list, and a name must not name a function here.
    if name in MOVED:
        raise ValueError(
            f"{name} does not run in ComfyUI: {MOVED[name].reason}. Choose another reward here, or score saved images in a "
            f"terminal with diffusion-blend score; {MOVED[name].folder}/README.md in this extension's folder says how."
        )
    if name not in CATALOGUE:
        raise ValueError(f"There is no reward {name!r}: choose from {', '.join(CATALOGUE)}.")
    with _plain_words(name):
        from ...rewards.load import load_rewards
        from ...rewards.protocol import NetworkReward

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
    """Score a batch on the host's device. The host moves the network there, and away when it needs the memory.

    Args:
        model: the reward.
        images: float[B, H, W, 3 or 4] in 0..1; transparency is ignored.
        prompt: of all images.

    Returns:
        float[B], larger is better.

    Raises:
        ValueError: a reward that compares with the prompt got none, or gave a score that is not a number.
    """
    from ...rewards.protocol import score

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
    if name not in REWARD_NAMES:
        raise ValueError(f"There is no reward {MINIATURE + name!r}: choose from {', '.join(REWARD_NAMES)}.")
    from ...miniature.rewards import REWARDS as computed

    return computed[name]  # pyright: ignore[reportReturnType]  (its results are checked at every call)


@contextmanager
def _plain_words(name: str) -> Iterator[None]:
    """Replace messages that speak of the trainer's command line by messages that name the node's inputs."""
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


def reward_folders() -> list[str]:
    models = _models()
    return sorted(path.name for path in models.iterdir() if path.is_dir()) if models.is_dir() else []


def _folder(reward: str, chosen: str) -> str | None:
    """The folder to read a reward's model from; None for the machine's cache."""
    folders = reward_folders()
    if chosen == AUTOMATIC:
        return str(_models() / reward) if reward in folders else None
    if chosen not in folders:
        raise ValueError(f"There is no folder {chosen!r} in {_models()}, only {', '.join(folders) or 'nothing'}.")
    return str(_models() / chosen)
