"""Laws have no time limit: a busy machine is no counterexample."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("diffusion_blend", deadline=None)
settings.load_profile("diffusion_blend")
