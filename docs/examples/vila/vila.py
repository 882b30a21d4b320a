"""VILA, the aesthetic reward of the Diffusion Blend paper, as an example of a reward of one's own.

VILA needs TensorFlow, which clashes with other libraries. So it runs in a process and a Python of its own.
"""

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
from PIL import Image
from torch import Tensor

HUB = "https://tfhub.dev/google/vila/image/1"
PYTHON = "VILA_PYTHON"
"""Environment variable: the Python that has TensorFlow. Without it, this Python is used."""

MODEL = "VILA_MODEL"
"""Environment variable: a local folder with the SavedModel, or "download" to let TensorFlow Hub fetch it (about 0.5 GB,
Apache-2.0)."""


class Vila:
    """Aesthetic quality ``4 r - 2`` with r in 0..1, so -2..2.

    VILA (Ke et al. 2023, arXiv 2303.14302), scaled as in the Diffusion Blend paper (arXiv 2505.18547).
    """

    def __init__(self, location: str) -> None:
        """Start the process and wait for its model.

        Args:
            location: a folder with the SavedModel, or the address on TensorFlow Hub.

        Raises:
            ValueError: the process could not load it, for example because TensorFlow is not installed.
        """
        python = os.environ.get(PYTHON, sys.executable)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("vila_worker.py")), location],
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
        _picture(image).save(file, format="PNG")
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


def _picture(image: Tensor) -> Image.Image:
    """One image float[3, H, W] in 0..1 as an 8-bit RGB picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


_started: list[Vila] = []


def vila(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Score images; the process is started by the first call.

    Args:
        images: float[B, 3, H, W] in 0..1.
        prompts: one per image; not used.

    Returns:
        float64[B], -2..2.

    Raises:
        ValueError: ``VILA_MODEL`` is not set, or the process could not start.
    """
    if not _started:
        location = os.environ.get(MODEL)
        if not location:
            raise ValueError(f"set {MODEL} to a folder with VILA's SavedModel, or to download (0.5 GB from {HUB})")
        _started.append(Vila(HUB if location == "download" else location))
    return _started[0](images, prompts)
