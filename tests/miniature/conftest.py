"""Fixtures of the miniature's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """An untrained miniature pipeline."""
    from diffusion_blend.miniature.model import make_pipeline

    pipeline = make_pipeline(tmp_path_factory.mktemp("fresh") / "tokenizer", seed=0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
