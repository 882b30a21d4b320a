"""Atomic writes: a reader never sees a part of a file."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from pathlib import Path


def temporary_file(path: Path) -> Path:
    """The file beside another one that this process writes first: processes and machines do not share it."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk, then rename it into place.

    Args:
        path: where it should be; its folder exists.
        content: what it should hold.
    """
    temporary = temporary_file(path)
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


def write_once(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet, whole and atomically: of several processes, exactly one writes it.

    Args:
        path: where it should be; its folder exists.
        content: what it should hold.

    Returns:
        Whether this call wrote it.
    """
    temporary = temporary_file(path)
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def check_folder(folder: Path) -> None:
    """Check that a folder is there or can be made, and that files can be written into it. Nothing is left behind.

    Raises:
        ValueError: the path is a URL, it or one above it is a file, or no file can be made there.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", folder.as_posix()):  # a path has lost one of the two strokes
        raise ValueError(
            f"cannot write into {folder}: this output is a folder and not a URL; only a sweep writes to URLs"
        )
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"cannot write into {folder}: {there} is a file and not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error.strerror} in {there}") from error


def check_file(file: Path) -> None:
    """Check that a file can be written, and make its folder.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written to.
    """
    if file.is_dir():
        raise ValueError(f"cannot write {file}: it is a folder; give the name of a file")
    check_folder(file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)


def find_file(path: str) -> Path:
    """A file by its path, or one of the package's own: ``miniature/sweep.yaml`` is found from any folder.

    Args:
        path: as the user gave it. A relative path that is not there is looked up in the package's folder.

    Returns:
        The path of the file, or the path as given if there is no such file.
    """
    own = Path(__file__).parents[1] / path
    return own if not Path(path).exists() and not Path(path).is_absolute() and own.is_file() else Path(path)
