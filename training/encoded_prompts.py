"""Where the encoded prompts of a run are: in memory, or in a folder that runs share."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..artifacts.files import write_atomically
from .models.protocol import Conditioning

FEATURES = "features"
"""The name of the value function's features among a row's tensors."""

PROBE = "a photograph of an astronaut riding a horse"
"""The prompt whose encoding names the encoders of a cache. It is the same for every run, so that runs share a folder."""

Row = dict[str, Tensor]
"""A prompt's tensors [1, ...] by name."""


def named(conditioning: Conditioning) -> Row:
    """The prompts' tensors and features by name."""
    return {**conditioning.prompt, FEATURES: conditioning.features}


class EncodedInMemory:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._rows

    def put(self, prompt: str, row: Row) -> None:
        """Store a prompt's row."""
        self._rows[prompt] = {name: tensor.clone() for name, tensor in row.items()}  # not a view of its whole batch

    def get(self, prompt: str) -> Row:
        """A prompt's row."""
        return self._rows[prompt]

    def shapes(self, prompt: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a prompt's tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self._rows[prompt].items()}


class EncodedOnDisk:
    """Rows as one ``.safetensors`` file a prompt, in a folder named by the encoders.

    Args:
        folder: of all encoders.
        probe: `PROBE`, encoded now. Its values name the encoders, so that other encoders take another folder.
        first: the run's first prompt, encoded now. The names of its tensors are a part of the folder's name, because a base
            of one's own may encode some prompts with more tensors than others.
    """

    def __init__(self, folder: Path, probe: Conditioning, first: Conditioning) -> None:
        digest = hashlib.sha256(" ".join(sorted(named(first))).encode())
        for name, tensor in sorted(named(probe).items()):
            # Rounded: the same encoders on another machine may differ in the last digits.
            values = tensor.cpu().double()
            digest.update(
                f"{name} {tensor.dtype} {values.mean().item():.3e} {values.std(correction=0).item():.3e};".encode()
            )
        self.folder = folder / digest.hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return self._path(prompt).is_file()

    def put(self, prompt: str, row: Row) -> None:
        """Store a prompt's row."""
        write_atomically(self._path(prompt), save({name: tensor.contiguous().clone() for name, tensor in row.items()}))

    def get(self, prompt: str) -> Row:
        """Read a prompt's row.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            return load_file(self._path(prompt))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"prompts.cache: {self._path(prompt)} cannot be read ({error}); delete it") from error

    def shapes(self, prompt: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a prompt's tensors, from the file's header.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            with safe_open(self._path(prompt), framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"prompts.cache: {self._path(prompt)} cannot be read ({error}); delete it") from error
