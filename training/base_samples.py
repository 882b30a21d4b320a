"""A cache of the base's samples on disk, so that adapters for several rewards share one sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..artifacts.files import write_atomically
from .config import SamplingConfig
from .models.protocol import Conditioning
from .policy import exact

_FINGERPRINT = "diffusion_blend.pool"
_WITHOUT_EFFECT = ("pool", "batch")
"""Settings of the sampling that do not change the samples."""


class BaseSamples:
    """Clean latents of the base, one file per iteration and process.

    Args:
        folder: holds the files; it is made with the first one.
        made_with: the fingerprint of everything that decides the samples.
    """

    def __init__(self, folder: Path, made_with: str) -> None:
        self.folder, self.made_with = folder, made_with

    def holds(self, iteration: int, rank: int) -> bool:
        """Whether there is a file of one process's samples of one iteration."""
        return self._path(iteration, rank).exists()

    def _path(self, iteration: int, rank: int) -> Path:
        return self.folder / f"iteration-{iteration:06d}-process-{rank:03d}.safetensors"

    def latents(self, iteration: int, rank: int, make: Callable[[], Tensor]) -> Tensor:
        """Read one process's samples of one iteration, or make and write them.

        Args:
            iteration: which.
            rank: of the process.
            make: samples them.

        Returns:
            float32[N, C, H, W].

        Raises:
            ValueError: the file was made with other settings, or cannot be read.
        """
        path = self._path(iteration, rank)
        if not path.exists():
            latents = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            content = save({"latents": latents.contiguous()}, metadata={_FINGERPRINT: self.made_with})
            write_atomically(path, content)
            return latents
        try:
            with safe_open(str(path), framework="pt") as file:
                found = (file.metadata() or {}).get(_FINGERPRINT)
                if found != self.made_with:
                    raise ValueError(
                        f"sampling.pool: {path} was made with other settings ({found}, now {self.made_with}): "
                        "give the old settings, or another folder"
                    )
                return file.get_tensor("latents")
        except SafetensorError as error:
            raise ValueError(
                f"sampling.pool: {path} cannot be read ({error}): delete it, it will be made again"
            ) from error


def fingerprint(
    sampling: SamplingConfig, seed: int, processes: int, prompts: Sequence[str], first: Conditioning, probe: Tensor
) -> str:
    """Describe everything that the base's samples depend on, as JSON.

    Args:
        sampling: the sampler's settings.
        seed: of the run.
        processes: the number of processes that share an iteration.
        prompts: in their order.
        first: the first prompt's conditioning, which identifies the text encoder.
        probe: the base's output at a known input, which identifies its weights.
    """
    settings = {key: value for key, value in asdict(sampling).items() if key not in _WITHOUT_EFFECT}
    if settings["noisy_steps"] in ("all", "auto"):  # as in files that were written before the setting existed
        del settings["noisy_steps"]
    for added in ("window_steps", "negative_prompt"):
        if not settings[added]:
            del settings[added]
    digests = {"prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]}
    for name, tensor in (("text", first.features), ("base", probe)):
        # Rounded: the same network on another machine may differ in the last digits.
        rounded = [f"{value:.2e}" for value in (exact(tensor).mean().item(), exact(tensor).std(correction=0).item())]
        digests[name] = " ".join(rounded)
    return json.dumps({**settings, "seed": seed, "processes": processes, **digests}, sort_keys=True)


def probe_noise(shape: Sequence[int]) -> Tensor:
    """A fixed input that identifies a network by its output, float32[1, C, H, W]."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
