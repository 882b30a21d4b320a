"""New LoRA files in the host's loras folder: their names are checked, and no file is overwritten."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import folder_paths

MOST_COPIES = 10_000
"""The largest number at the end of a file's name."""
LONGEST_NAME = 200
"""Bytes of a file's name without number and ending. File systems take 255."""


def loras_folder() -> Path:
    """The first loras folder of the host."""
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def _can_be_a_name(part: str) -> bool:
    """Whether a file may have this name on every system, with a number and an ending behind it."""
    return (
        re.fullmatch(r"[^<>:\"|?*\\/]+", part) is not None
        and part.strip(". ") == part
        and not any(unicodedata.category(letter).startswith("C") for letter in part)
        and len(part.encode()) <= LONGEST_NAME
        and re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part, re.IGNORECASE) is None
    )


def place(filename: str) -> Path:
    """Return the file that a name stands for, inside the first loras folder.

    Raises:
        ValueError: the name is empty or too long, is not a name inside the folder, or has characters that cannot be seen.
    """
    parts = filename.strip().removesuffix(".safetensors").split("/")
    if not all(_can_be_a_name(part) for part in parts):
        raise ValueError(
            f"filename is {filename!r}: give a name without an ending, such as my_blend or folder/my_blend, inside the loras "
            f"folder, of visible characters and at most {LONGEST_NAME} bytes; Windows reserves con, nul, com1 and the like."
        )
    path = loras_folder().joinpath(*parts).with_name(f"{parts[-1]}.safetensors")
    if not path.resolve().is_relative_to(loras_folder()):  # a link inside the folder may lead out of it
        raise ValueError(f"filename is {filename!r}, which leads out of the loras folder: choose another name.")
    return path


def write_new(path: Path, content: bytes, ending: str = ".safetensors") -> Path:
    """Write a file that is not there yet; where the name is taken, with a number before its ending.

    Args:
        path: of the file.
        content: of the file.
        ending: of the file's name.

    Returns:
        The file.

    Raises:
        ValueError: the folder cannot be written, or too many names are taken.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, MOST_COPIES):
            file = path if number == 1 else path.with_name(f"{path.name.removesuffix(ending)}_{number}{ending}")
            try:
                file.open("xb").close()  # takes the name, also where another process wants it
            except FileExistsError:
                continue
            _fill(file, content)
            return file
    except OSError as error:
        raise ValueError(f"{path.name} cannot be written into the loras folder ({error.strerror}).") from error
    raise ValueError(f"{path.stem} and {MOST_COPIES} numbered names are taken: choose another name.")


def _fill(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise
