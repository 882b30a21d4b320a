"""The names that templates had in earlier versions: links to them still open the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .server import running_server

FOLDER = Path(__file__).absolute().parents[2]  # as installed: a link keeps the name that the host knows
RENAMED = {
    "try_it_no_downloads": "1 Try it - no downloads",
    "blend_two_adapters": "2 Blend two LoRAs",
    "triangle_of_three": "3 Blend three LoRAs",
    "any_two_style_loras": "4 Two styles, five mixtures",
    "kl_scale_row": "5 Weaker and stronger in a row",
    "sweep_with_pareto": "6 All mixtures of three, scored",
    "preference_schedule": "7 One LoRA early, another late",
    "regional_preference": "8 One LoRA left, another right",
    "stochastic_blend_model": "9 Fast - one LoRA a step",
}


def install() -> None:
    """Serve the templates by their earlier names, too, from the running server, if there is one."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web  # the host's own server has loaded it

    def serve(old: str, new: str) -> None:
        async def send(_: Any) -> Any:
            return web.FileResponse(FOLDER / "workflows" / new)

        server.routes.get(f"/workflow_templates/{FOLDER.name}/{old}")(send)

    for old, new in RENAMED.items():
        for ending in (".json", ".jpg"):
            serve(old + ending, new + ending)
