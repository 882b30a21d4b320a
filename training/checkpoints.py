"""Checkpoints that appear whole or not at all: each is a folder that is renamed into place when its files are on disk."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..artifacts.files import flush_folder, write_atomically
from ..artifacts.tensors import read_tensors

logger = logging.getLogger("diffusion_blend")

STATE = "state.pt"
ADAPTER = "adapter.safetensors"
SUMS = "SHA256SUMS"
"""The other files' digests, as ``sha256sum`` writes and checks them: nothing else sees a flipped bit in a tensor."""
_NAME = re.compile(r"checkpoint-(\d{8})")
_PARTIAL = ".partial"


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


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
    files = {STATE: content.getvalue(), ADAPTER: adapter}
    sums = "".join(f"{_digest(data)}  {name}\n" for name, data in files.items())
    try:
        partial.mkdir()
        for name, data in {**files, SUMS: sums.encode()}.items():
            write_atomically(partial / name, data)
        if final.exists():  # a damaged one that the run has reached again: the new one replaces it
            _remove(final)
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(folder)
    # Later ones are damaged: the run was resumed from before them.
    later = [path for path in list_checkpoints(folder) if path.name > final.name]
    for old in [*later, *list_checkpoints(folder)[: -keep - len(later)]]:
        _remove(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir())


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is what was written; None if there is no checkpoint at all.

    A damaged one is passed over with a warning: the run before it is repeated from the one before, to the same end.

    Raises:
        DamagedCheckpoint: there are checkpoints, and all are damaged.
    """
    complaints = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            verify(checkpoint)
        except DamagedCheckpoint as error:
            logger.warning("%s", error)
            complaints.append(str(error))
        else:
            return checkpoint
    if complaints:
        raise DamagedCheckpoint("no checkpoint can be resumed: " + "; ".join(complaints))
    return None


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint's files with their digests.

    Raises:
        DamagedCheckpoint: a file is missing or differs, or the digests are missing.
    """
    sums = checkpoint / SUMS
    if not sums.is_file():
        raise DamagedCheckpoint(
            f"{checkpoint} has no {SUMS}: it is damaged, or of an older version. To trust it as it is, run "
            f"sha256sum {STATE} {ADAPTER} > {SUMS} in it"
        )
    lines = [line.split() for line in sums.read_text(errors="replace").splitlines()]
    wanted = {line[1]: line[0] for line in lines if len(line) == 2}
    for name in (STATE, ADAPTER):
        file = checkpoint / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{checkpoint} has no {name}: it is damaged")
        digest = _digest(file.read_bytes())
        if wanted.get(name) != digest:
            raise DamagedCheckpoint(
                f"{file} is not what was written (SHA-256 {digest}, {SUMS} says {wanted.get(name)})"
            )


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's state, tensors on the CPU; nothing in it can run code.

    Raises:
        ValueError: as `read_tensors`.
    """
    return read_tensors(checkpoint / STATE)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint away under another name first: half of one is never seen under its own."""
    leaving = checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}")
    checkpoint.rename(leaving)
    shutil.rmtree(leaving)


def _remove_partial(folder: Path) -> None:
    for leftover in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover)
