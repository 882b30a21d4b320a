"""Results at a URL (``s3://``, ``gs://``, ``memory://``, ...): a local folder that is copied there by fsspec."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import check_folder, write_once

logger = logging.getLogger("diffusion_blend")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(output: str) -> bool:
    """Whether an output is a URL of fsspec; a drive's letter (``C:``) is none."""
    return _SCHEME.match(output) is not None


@dataclass(frozen=True)
class Mirror:
    """A local folder and its copy at a URL.

    Attributes:
        url: where the copy is.
        folder: where the work is done. Processes that share the work share this folder, because claims need a file
            system on which exactly one process can create a file.
        left_out: folders at the top that are not copied.
    """

    url: str
    folder: Path
    left_out: Collection[str] = ()

    def check(self) -> None:
        """Check that files can be written at the URL and in the folder, by writing one and removing it.

        Raises:
            ValueError: an unknown kind of URL, a library that is not installed, or a place that cannot be written.
        """
        check_folder(self.folder)
        try:
            system, path = self._system()
            probe = f"{path}/.probe-{secrets.token_hex(8)}"
            system.makedirs(path, exist_ok=True)
            system.pipe_file(probe, b"")
            system.rm_file(probe)
        # Every file system of fsspec has exceptions of its own; all of them mean that the place cannot be used.
        except Exception as error:
            raise ValueError(f"cannot write to {self.url}: {type(error).__name__}: {error}") from error

    def fetch(self) -> int:
        """Copy the files that the folder lacks from the URL, so that a new machine goes on with what is there.

        Returns:
            How many were copied.
        """
        system, path = self._system()
        there = self._there(system, path)
        missing = [name for name in there if not (self.folder / name).exists()]
        if missing:
            logger.info("%d files are copied from %s", len(missing), self.url)
        for name in missing:
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_once(file, system.cat_file(f"{path}/{name}"))
        return len(missing)

    def upload(self) -> int:
        """Copy the folder's files to the URL; pictures that are there with their size are not copied again.

        Returns:
            How many were copied.

        Raises:
            OSError: the copy failed; the folder is complete.
        """
        system, path = self._system()
        try:
            there = self._there(system, path)
            names = [name for name, file in self._here().items() if _differs(file, there.get(name))]
            # Tables last: a reader who sees them finds the files that they name.
            names.sort(key=lambda name: (Path(name).parent == Path(), name))
            logger.info("%d files are copied to %s", len(names), self.url)
            system.put([str(self.folder / name) for name in names], [f"{path}/{name}" for name in names])
        except Exception as error:  # as in `check`
            raise OSError(
                f"the copy to {self.url} failed ({type(error).__name__}: {error}). The folder {self.folder} is complete: the "
                "same command copies it again"
            ) from error
        return len(names)

    def _system(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.url)
        return system, path.rstrip("/")

    def _there(self, system: Any, path: str) -> dict[str, int]:
        """Files at the URL with their sizes, by their names in the folder."""
        system.invalidate_cache()
        if not system.exists(path):
            return {}
        found = system.find(path, detail=True)
        sizes = {name.removeprefix(path).lstrip("/"): int(entry["size"] or 0) for name, entry in found.items()}
        return {name: size for name, size in sizes.items() if not self._is_left_out(name)}

    def _here(self) -> dict[str, Path]:
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        named = {file.relative_to(self.folder).as_posix(): file for file in files}
        return {name: file for name, file in sorted(named.items()) if not self._is_left_out(name)}

    def _is_left_out(self, name: str) -> bool:
        parts = name.split("/")
        return parts[0] in self.left_out or parts[-1].startswith(".")


def _differs(file: Path, size: int | None) -> bool:
    """Whether a file has to be copied. A table may change and keep its size, a picture may not."""
    return file.suffix != ".png" or file.stat().st_size != size
