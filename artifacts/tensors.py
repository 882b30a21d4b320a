"""Files of tensors that cannot run code when they are read."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def read_tensors(path: Path) -> Any:
    """Read a ``.pt`` file of tensors and plain containers onto the CPU; nothing in it can run code.

    Raises:
        ValueError: it is damaged, or holds anything else.
        OSError: it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which could run code (read with weights_only): {first}"
        ) from error
