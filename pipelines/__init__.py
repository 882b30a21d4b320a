"""The blend for users of diffusers: `BlendedPipeline`, `blend`, and one reader of adapter files."""

from .blended import BlendedPipeline, blend

__all__ = ["BlendedPipeline", "blend"]
