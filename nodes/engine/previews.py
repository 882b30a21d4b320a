"""Preview pictures of adapters: image files of the same name beside them, as other tools of artists write them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .server import running_server

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".preview.png", ".preview.jpg")
LIST, PICTURE = "/diffusion_blend/previews", "/diffusion_blend/preview"


def picture_of(adapter: str) -> Path | None:
    """Return the preview picture beside an adapter file, if there is one."""
    bare = Path(adapter).with_suffix("")
    pictures = (bare.with_name(bare.name + ending) for ending in ENDINGS)
    return next((picture for picture in pictures if picture.is_file()), None)


def install(files: Callable[[], Iterable[str]], path_of: Callable[[str], str]) -> None:
    """Serve the pictures from the running server, if there is one.

    Args:
        files: the adapters that may be chosen. No other name is answered.
        path_of: the file of a chosen adapter.
    """
    server = running_server()
    if server is None:
        return
    from aiohttp import web  # the host's own server has loaded it

    @server.routes.get(LIST)
    async def list_previews(_: Any) -> Any:
        def having() -> list[str]:
            return [file for file in files() if picture_of(path_of(file)) is not None]

        return web.json_response(await asyncio.to_thread(having))  # a folder on a network drive takes its time

    @server.routes.get(PICTURE)
    async def send_preview(request: Any) -> Any:
        wanted = request.query.get("file", "")

        def found() -> Path | None:
            return picture_of(path_of(wanted)) if wanted in files() else None

        picture = await asyncio.to_thread(found)
        return web.Response(status=404) if picture is None else web.FileResponse(picture)
