"""Short trainings for tests: settings for a tiny pipeline, and the comparison of two states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusion_blend.rewards.protocol import Reward
from diffusion_blend.training.config import (
    AdapterConfig,
    AlgorithmConfig,
    BaseConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    ValueConfig,
)
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.protocol import TextToImageModel
from diffusion_blend.training.trainer import Trainer
from torch import Tensor

PROMPTS = ["a red cat", "a dog"]


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Ten times the excess of red over green and blue."""
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def settings(output: Path, name: str = "dpok", **over: Any) -> TrainConfig:
    """Return settings for a tiny pipeline. ``over`` changes fields by section, e.g. ``run={"seed": 1}``."""
    sections: dict[str, dict[str, Any]] = {
        "sampling": {"steps": 6, "noisy_steps": "all", "guidance_scale": 1.0, "samples": 128, "batch": 128},
        "algorithm": {"name": name, "kl_weight": 0.01, "clip": "ppo", "buffer": 640, "updates": 4},
        "optimizer": {"learning_rate": 5e-3, "clip_norm": 1.0, "accumulate": 1},
        "value": {"updates": 5, "batch": 128, "learning_rate": 1e-3, "hidden": 32},
        "run": {"iterations": 10, "save_every": 100, "watch_every": 0, "seed": 0},
        "adapter": {"rank": 2, "alpha": 2.0, "targets": ["attn2.to_v", "attn2.to_out.0"]},
        "base": {},
    }
    classes = {
        "sampling": SamplingConfig,
        "algorithm": AlgorithmConfig,
        "optimizer": OptimizerConfig,
        "value": ValueConfig,
        "run": RunConfig,
        "adapter": AdapterConfig,
        "base": BaseConfig,
    }
    top = {key: value for key, value in over.items() if key not in sections}
    parts = {key: classes[key](**{**defaults, **over.get(key, {})}) for key, defaults in sections.items()}
    return TrainConfig(**{"output": str(output), "rewards": {"redness": 1.0}, **top, **parts})


def make_trainer(
    config: TrainConfig, model: TextToImageModel, rewards: Mapping[str, Reward], prompts: Sequence[str] = PROMPTS
) -> Trainer:
    return Trainer(config, model, rewards, {}, prompts, Accelerator(cpu=True))


def tiny_trainer(folder: Path, config: TrainConfig) -> Trainer:
    """Make a trainer on a tiny pipeline with the redness reward."""
    base = load_base(dataclasses.replace(config.base, path=str(folder)), torch.device("cpu"), allow_download=False)
    model = DiffusersModel(base, config.adapter, config.run.seed)
    return make_trainer(config, model, {"redness": redness})


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()  # two NaN count as equal
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other
