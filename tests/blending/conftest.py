"""Hypothesis runs without a time limit, because a busy machine is no counterexample to a law."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("diffusion_blend", deadline=None)
settings.load_profile("diffusion_blend")
