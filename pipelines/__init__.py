"""The blend for users of diffusers: `BlendedPipeline`, `blend`, one reader of adapter files, and ``diffusion-blend bake``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blended import BlendedPipeline, blend

__all__ = ["BlendedPipeline", "blend"]


def __getattr__(name: str) -> Any:
    # Imported at the first use, so that the command's help needs no torch.
    if name in __all__:
        from . import blended

        return getattr(blended, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
