"""Rewards by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import pixels, sources
from .protocol import Reward
from .sources import Source, locate


def load_rewards(
    names: Iterable[str], folders: Mapping[str, str], device: torch.device, *, allow_download: bool
) -> dict[str, Reward]:
    """Load several rewards.

    Args:
        names: known names (see ``KNOWN``), or ``module:function`` for one's own.
        folders: name -> local folder with its model.
        device: where models compute.
        allow_download: permit fetching models that are not on this machine.

    Returns:
        Rewards by name, in order.

    Raises:
        ValueError: an unknown name, a folder for a reward that is not used, or a model that cannot be had.
    """
    names = list(names)
    for name in folders:
        if name not in names:
            raise ValueError(f"reward_folders names {name!r}, which is not among the rewards {names}")
    check_names(names)
    return {
        name: _own(name) if ":" in name else KNOWN[name](_Request(folders.get(name), device, allow_download))
        for name in names
    }


def check_names(names: Iterable[str]) -> None:
    """See that every reward is known, before anything is loaded.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if ":" not in name and name not in KNOWN:
            raise ValueError(
                f"unknown reward {name!r}: choose from {', '.join(KNOWN)}, or module:function for your own"
            )


@dataclass(frozen=True)
class _Request:
    """What a loader may use."""

    folder: str | None
    device: torch.device
    allow_download: bool

    def find(self, source: Source) -> Path:
        return locate(source, self.folder, allow_download=self.allow_download)


def _own(name: str) -> Reward:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109  (sys.path holds strings)
        sys.path.append(os.getcwd())  # noqa: PTH109  (a file next to where the command is run)
    try:
        reward = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r}: cannot import it as module:function ({error})") from error
    if not callable(reward):
        raise ValueError(f"reward {name!r} is a {type(reward).__name__}: it must be a function of images and prompts")
    return reward  # pyright: ignore[reportReturnType]  (its results are checked at every call)


def _image_reward(request: _Request) -> Reward:
    from .image_reward import ImageReward

    return ImageReward(request.find(sources.IMAGE_REWARD), request.find(sources.BERT_VOCABULARY), request.device)


def _pick_score(request: _Request) -> Reward:
    from .clip import PickScore

    return PickScore(request.find(sources.PICK_SCORE), request.find(sources.CLIP_H14_PROCESSOR), request.device)


def _clip_score(request: _Request) -> Reward:
    from .clip import ClipScore

    folder = request.find(sources.CLIP_L14)
    return ClipScore(folder, folder, request.device)


def _hps_v2(request: _Request) -> Reward:
    from .clip import HpsV2

    return HpsV2(request.find(sources.HPS_V2), request.find(sources.CLIP_H14_PROCESSOR), request.device)


def _aesthetic(request: _Request) -> Reward:
    from .clip import Aesthetic

    return Aesthetic(request.find(sources.CLIP_L14), request.find(sources.AESTHETIC_HEAD), request.device)


def _vila(request: _Request) -> Reward:
    from .vila import Vila

    return Vila(request.folder, allow_download=request.allow_download)


KNOWN: dict[str, Callable[[_Request], Reward]] = {
    "image_reward": _image_reward,
    "pick_score": _pick_score,
    "clip_score": _clip_score,
    "hps_v2": _hps_v2,
    "aesthetic": _aesthetic,
    "jpeg_compressibility": lambda _: pixels.jpeg_compressibility,
    "jpeg_incompressibility": lambda _: pixels.jpeg_incompressibility,
    "colourfulness": lambda _: pixels.colourfulness,
    "vila": _vila,
}
"""Loaders by name; those with a model import their libraries only when they are used."""
