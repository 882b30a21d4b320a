"""Records every attempt to reach another machine from the import of this module on. No attempt is stopped.

If the environment variable ``NETWORK_LOG`` is set, each attempt is also written to that file, because a killed process cannot
report its attempts.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

ATTEMPTS: list[str] = []
_HERE = ("127.", "::1", "localhost", "0.0.0.0")


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:2]
    else:
        return
    if not isinstance(address, tuple) or address[0] is None or str(address[0]).startswith(_HERE):
        return  # a socket of this machine
    stack = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(traceback.extract_stack()[:-1]))
    ATTEMPTS.append(f"{event} {address}: {stack}")
    if "NETWORK_LOG" in os.environ:
        with open(os.environ["NETWORK_LOG"], "a") as file:  # noqa: PTH123  (inside an audit hook: nothing more than this)
            file.write(ATTEMPTS[-1] + "\n")


sys.addaudithook(_note)
