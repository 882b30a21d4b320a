"""Checkpoints: complete or not there. Each is a folder that is renamed into place when everything in it is on disk."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from .files import flush_folder, write_atomically

STATE = "state.pt"
ADAPTER = "adapter.safetensors"
_NAME = re.compile(r"checkpoint-(\d{8})")
_PARTIAL = ".partial"


def save_checkpoint(folder: Path, iteration: int, state: dict[str, Any], adapter: bytes, keep: int) -> Path:
    """Write a checkpoint and drop the oldest ones beyond ``keep``.

    Args:
        folder: where checkpoints are; made if missing.
        iteration: iterations completed.
        state: tensors, numbers, strings and plain containers of them, nothing else (it is read back without pickle).
        adapter: content of the adapter file, so that every checkpoint can be used as it is.
        keep: how many complete checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it could not be written (a full disk, say); earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"checkpoint-{iteration:08d}"
    partial = folder / f"{final.name}{_PARTIAL}"
    _remove_partial(folder)
    content = io.BytesIO()
    torch.save(state, content)
    try:
        partial.mkdir()
        write_atomically(partial / STATE, content.getvalue())
        write_atomically(partial / ADAPTER, adapter)
        if final.exists():  # an interrupted run that is repeated: the new one replaces it
            shutil.rmtree(final)
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir())


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's state, tensors on the CPU; nothing in it can run code."""
    return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)


def _remove_partial(folder: Path) -> None:
    for leftover in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover)
