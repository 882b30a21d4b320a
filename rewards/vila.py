"""VILA, the aesthetic reward of the paper: TensorFlow only, so it runs in a process (and environment) of its own."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..artifacts.pictures import to_pil
from .sources import NotOnThisMachine

HUB = "https://tfhub.dev/google/vila/image/1"
PYTHON = "DIFFUSION_BLEND_VILA_PYTHON"
"""Environment variable: the Python that has TensorFlow; unset means this one."""


class Vila:
    """Aesthetic quality (Ke et al. 2023, VILA, arXiv 2303.14302), ``4 r - 2`` with r in 0..1, so -2..2 (the Diffusion
    Blend paper's scaling)."""

    def __init__(self, folder: str | None, *, allow_download: bool) -> None:
        """Start the process and wait for its model.

        Args:
            folder: a local copy of the SavedModel, or None.
            allow_download: whether TensorFlow Hub may fetch it.

        Raises:
            NotOnThisMachine: no model given and downloads not allowed.
            ValueError: the process could not load it (TensorFlow is not installed, say).
        """
        if folder is None and not allow_download:
            raise NotOnThisMachine(
                f"VILA's SavedModel from {HUB}, about 0.5 GB, licence Apache-2.0",
                "Give --allow_download true to fetch it, or a local copy with --reward_folders.vila FOLDER",
            )
        python = os.environ.get(PYTHON, sys.executable)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("vila_worker.py")), folder or HUB],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        if self._answer() != "ready":
            raise ValueError(
                f"VILA did not start under {python}: {self._complaint()}. It needs TensorFlow (and tensorflow_hub to "
                f"download): install them in an environment of their own and set {PYTHON} to its Python"
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:  # noqa: ARG002  (every reward gets them)
        return torch.tensor([4 * self._score(image) - 2 for image in images], dtype=torch.float64)

    def _score(self, image: Tensor) -> float:
        file = io.BytesIO()
        to_pil(image).save(file, format="PNG")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack(">I", file.tell()) + file.getvalue())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ValueError(f"the VILA process died: {self._complaint()}") from error
        answer = self._answer()
        if not answer:
            raise ValueError(f"the VILA process died: {self._complaint()}")
        return float(answer)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def _complaint(self) -> str:
        """The last line that the process wrote to standard error."""
        self._process.wait(timeout=10)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()
        self._errors.close()
