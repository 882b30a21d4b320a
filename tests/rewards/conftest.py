"""Runs torch on one thread: tiny tensors gain nothing from more, and results must not depend on their number."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
