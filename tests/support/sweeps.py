"""Small sweeps for tests: tiny pipelines, adapters with a visible effect, and settings that run in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.sweep.config import SweepConfig
from diffusion_blend.evaluation.sweep.prepare import prepare
from diffusion_blend.evaluation.sweep.run import Sweep
from diffusion_blend.training.config import AdapterConfig, BaseConfig, PromptConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel

PROMPTS = ("a red cat", "a dog", "cats 2")


def write_adapter(folder: Path, base: Path, name: str, seed: int, **lora: Any) -> Path:
    """Write an adapter file as the trainer does, with random factors that visibly change the pictures."""
    model = DiffusersModel(
        load_base(BaseConfig(path=str(base)), torch.device("cpu"), allow_download=False),
        AdapterConfig(**{"rank": 2, "alpha": 3.0, **lora}),
        seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    metadata = {"diffusion_blend.kl_weight": str(0.1 * (seed + 1))}
    path = folder / f"{name}.safetensors"
    path.write_bytes(model.export(metadata))
    return path


def settings(output: Path, base: Path, adapters: dict[str, Path], **over: Any) -> SweepConfig:
    """Return the settings of a small sweep; ``over`` changes fields."""
    prompts = output.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    values: dict[str, Any] = {
        "output": str(output),
        "adapters": {name: str(path) for name, path in adapters.items()},
        "rewards": dict.fromkeys(adapters, "own_rewards:plain_redness"),
        "methods": ["blend"],
        "weights": [[1.0, 1.0]],
        "images_per_point": 4,
        "steps": 5,
        "guidance_scale": 3.0,
        "batch": 4,
        "reward_units": "kl_weight",
        "save_images": 0,
        "base": BaseConfig(path=str(base), resolution=8),  # the smallest that diffusers' pipelines accept
        "prompts": PromptConfig(source=str(prompts)),
    }
    return SweepConfig(**{**values, **over})


def sweep(config: SweepConfig) -> Sweep:
    """The sweep, ready to run."""
    return prepare(config, Worker(torch.device("cpu"), True))


def latents(ready: Sweep, point: int, images: Sequence[int]) -> torch.Tensor:
    """Return the clean latents of a point's pictures."""
    from diffusion_blend.evaluation.sweep.steps import Cost

    chunk = ready._chunk(range(images[0], images[-1] + 1))
    return ready.runner.sample(ready.points[point], chunk, Cost()).latents.clone()
