"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk, then rename it into place.

    Args:
        path: where it should be; its folder exists.
        content: what it should hold.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Force a folder's entries (a rename in it) to disk."""
    if os.name != "posix":  # Windows cannot open a folder for that; its renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
