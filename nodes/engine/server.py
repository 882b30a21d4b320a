"""The host's running server. A process without one, such as a test or a script, has none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def running_server() -> Any:
    """Return the host's ``PromptServer``; None in a process without a server."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def running_prompts() -> list[Any] | None:
    """Return the prompts that the server runs at present; None in a process without a server."""
    queue = getattr(running_server(), "prompt_queue", None)
    return None if queue is None else [item[2] for item in queue.get_current_queue_volatile()[0]]


def on_prompt(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Register a handler of the requests to run a prompt, if there is a server.

    Args:
        handler: takes a request's JSON and returns it.
    """
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(handler)
