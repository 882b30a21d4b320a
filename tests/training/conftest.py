"""Tiny pipelines, made once for all tests of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl


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
