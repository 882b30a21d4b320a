"""Messages to the artist: on the running node and in the log."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context

from .server import running_server

logger = logging.getLogger("diffusion_blend")


def notify(text: str) -> None:
    """Show a message on the running node and write it to the log.

    Args:
        text: one or two plain sentences.
    """
    logger.info("%s", text)
    context = get_executing_context()
    server = running_server()
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
