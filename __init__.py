"""ComfyUI's door to Diffusion Blend: what the host reads when it loads this folder."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"

__version__ = "0.2.0"


async def comfy_entrypoint() -> Any:
    """Give the host the extension's node classes; imported here so that importing this package does nothing."""
    from .nodes import DiffusionBlendExtension

    return DiffusionBlendExtension()
