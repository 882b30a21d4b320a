"""The host's compiler, paused while a layer's hook runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ...blending.gated_layer import Pause

prefetch: Any
try:
    from comfy import model_prefetch as prefetch
except ImportError:  # older hosts have no compiler
    prefetch = None


def pause_of_host() -> Pause:
    """Return what makes a context in which the host's compiler does not record allocations.

    Newer hosts record the allocations of a network's block, and expect the same ones at every call. A hook allocates for the
    gates of its call, which differ from call to call.
    """
    return getattr(prefetch, "pause_malloc_graph", nullcontext)
