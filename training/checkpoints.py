"""Atomic checkpoints: a folder is renamed into place after its files are on disk.

accelerate's ``save_state`` is not enough here. It pickles the random state and the optimizer, writes files in place, and
stores no checksums, so that a killed run can leave a checkpoint that is half new. safetensors holds tensors only, and a
run's state also has nested numbers and strings. `torch.save` with ``weights_only`` reading holds both without pickle's code.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..artifacts.files import flush_folder, write_atomically
from ..artifacts.tensors import read_tensors

logger = logging.getLogger("diffusion_blend")

STATE = "state.pt"
ADAPTER = "adapter.safetensors"
SUMS = "SHA256SUMS"
"""The checksums of the other files, in the format of ``sha256sum``. They reveal a flipped bit, which no file format does."""
_NAME = re.compile(r"checkpoint-(\d{8})")
_PARTIAL = ".partial"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files differ from those that were written."""


def save_checkpoint(
    folder: Path, iteration: int, state: dict[str, Any], adapter: bytes | Mapping[str, bytes], keep: int
) -> Path:
    """Write a checkpoint and delete the oldest ones beyond ``keep``.

    Args:
        folder: holds the checkpoints. It is created if it is missing.
        iteration: iterations completed.
        state: tensors, numbers, strings and plain containers of them. Other objects could not be read without pickle.
        adapter: content of the adapter file, or of several files by name, so that ComfyUI can load any checkpoint.
        keep: the number of complete checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: writing failed, for example on a full disk. Earlier checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"checkpoint-{iteration:08d}"
    partial = folder / f"{final.name}{_PARTIAL}"
    _remove_partial(folder)
    content = io.BytesIO()
    torch.save(state, content)
    files = {STATE: content.getvalue(), **({ADAPTER: adapter} if isinstance(adapter, bytes) else adapter)}
    sums = "".join(f"{_digest(data)}  {name}\n" for name, data in files.items())
    try:
        partial.mkdir()
        for name, data in {**files, SUMS: sums.encode()}.items():
            write_atomically(partial / name, data)
        if final.exists():  # a damaged checkpoint of the same iteration: the new one replaces it
            _remove(final)
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(folder)
    # Later checkpoints are damaged, because the run was resumed from an earlier one.
    later = [path for path in list_checkpoints(folder) if path.name > final.name]
    for old in [*later, *list_checkpoints(folder)[: -keep - len(later)]]:
        _remove(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir())


def newest_whole(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None if there is no checkpoint at all.

    A damaged checkpoint is skipped with a warning. The run then repeats the iterations after the checkpoint before it,
    and ends with the same adapter.

    Raises:
        DamagedCheckpoint: all checkpoints are damaged.
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
    """Compare a checkpoint's files with their checksums.

    Raises:
        DamagedCheckpoint: a file is missing or differs, or the checksums are missing.
    """
    sums = checkpoint / SUMS
    if not sums.is_file():
        raise DamagedCheckpoint(
            f"{checkpoint} has no {SUMS}: it is damaged, or of an older version. To trust it as it is, run "
            f"sha256sum {STATE} {ADAPTER} > {SUMS} in it"
        )
    lines = [line.split() for line in sums.read_text(errors="replace").splitlines()]
    wanted = {line[1]: line[0] for line in lines if len(line) == 2}
    adapters = [name for name in wanted if name.endswith(".safetensors") and Path(name).name == name]
    for name in (STATE, *(adapters or [ADAPTER])):
        file = checkpoint / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{checkpoint} has no {name}: it is damaged")
        digest = _digest(file.read_bytes())
        if wanted.get(name) != digest:
            raise DamagedCheckpoint(
                f"{file} is not what was written (SHA-256 {digest}, {SUMS} says {wanted.get(name)})"
            )


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's state, with tensors on the CPU. Reading runs no code of the file.

    Raises:
        ValueError: as `read_tensors`.
    """
    return read_tensors(checkpoint / STATE)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint before deleting it, so that a half-deleted one never has a checkpoint's name."""
    leaving = checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}")
    checkpoint.rename(leaving)
    shutil.rmtree(leaving)


def _remove_partial(folder: Path) -> None:
    for leftover in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover)
