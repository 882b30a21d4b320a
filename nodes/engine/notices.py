"""Say something to the artist: in the log, and on the node that is running."""

from __future__ import annotations

import logging
import sys

from comfy_execution.utils import get_executing_context

logger = logging.getLogger("diffusion_blend")


def notify(text: str) -> None:
    """One info line in the log and, where a server runs the node, the text on the node.

    Args:
        text: a sentence in plain words.
    """
    logger.info("%s", text)
    context = get_executing_context()
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
