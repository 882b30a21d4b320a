"""Tiny pipelines, made once for all tests of the trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from tiny_transformers import FOLDERS


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors: more threads only get in each other's way, and bits must not depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="session")
def tiny_sd_epsilon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("pipelines") / "sd-epsilon", prediction_type="epsilon")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("pipelines") / "sdxl")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of all families, each saved when a test first asks for it."""
    savers = {"sd": save_tiny_sd, "sdxl": partial(save_tiny_sdxl, prediction_type="v_prediction"), **FOLDERS}

    class Saved(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            self[family] = savers[family](tmp_path_factory.mktemp("families") / family)
            return self[family]

    return Saved()
