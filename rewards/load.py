"""Loading rewards by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping

import torch

from .catalogue import CATALOGUE, check_names
from .protocol import Reward
from .sources import ModelRequest


def load_rewards(
    names: Iterable[str], folders: Mapping[str, str], device: torch.device, *, allow_download: bool
) -> dict[str, Reward]:
    """Load several rewards.

    Args:
        names: names of the catalogue, or ``module:function`` for a reward of one's own, or a server's address.
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
        name: _own(name) if ":" in name else _known(name, ModelRequest(folders.get(name), device, allow_download))
        for name in names
    }


def _known(name: str, request: ModelRequest) -> Reward:
    entry = CATALOGUE[name]
    # Each file imports its libraries only when its reward is used.
    attribute = getattr(importlib.import_module(f".{entry.module}", __package__), entry.attribute)
    return attribute(request) if entry.has_model else attribute


def _own(name: str) -> Reward:
    if name.startswith(("http://", "https://")):
        from .remote import remote_reward  # needs Pillow

        return remote_reward(name)
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109  (sys.path holds strings)
        sys.path.append(os.getcwd())  # noqa: PTH109  (a file next to where the command is run)
    try:
        reward = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing the user's module runs any code
        raise ValueError(
            f"reward {name!r}: cannot import it as module:function ({type(error).__name__}: {error})"
        ) from error
    if not callable(reward):
        raise ValueError(f"reward {name!r} is a {type(reward).__name__}: it must be a function of images and prompts")
    return reward  # pyright: ignore[reportReturnType]  (its results are checked at every call)
