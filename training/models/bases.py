"""Loads a base model: hub id, diffusers folder, single checkpoint, or a function of the user's own."""

from __future__ import annotations

import importlib
import inspect
import logging
from pathlib import Path
from typing import Any

import torch

from ..config import BaseConfig
from .diffusers_model import Base
from .family import check_frames, family_of
from .loading import read_pipeline
from .sharding import shard

logger = logging.getLogger("diffusion_blend")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(config: BaseConfig, device: torch.device, *, allow_download: bool) -> Base:
    """Load the model to fine-tune.

    Args:
        config: path, configuration of a single checkpoint, resolution, frames, precision.
        device: where the denoiser and the VAE go; text encoders visit it only to encode.
        allow_download: permit fetching what is not on this machine.

    Returns:
        The base.

    Raises:
        ValueError: it cannot be found or read, it is a kind of model that is not supported, the resolution or the number of
            frames does not fit, fp16 was asked for without a GPU, or the base is to be shared by a single process.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError("base.precision fp16 needs a GPU: use fp32 or bf16 on the CPU")
    if ":" in config.path and not Path(config.path).exists():
        return _call(config.path, config.frames, config.resolution)
    pipeline = read_pipeline(config, DTYPES[config.precision], allow_download=allow_download)
    if config.shard:
        shard(getattr(pipeline, "transformer", None) or pipeline.unet, device)
    return base_from_pipeline(pipeline, config.path, config.resolution, device, config.frames)


def base_from_pipeline(pipeline: Any, name: str, resolution: int, device: torch.device, frames: int = 1) -> Base:
    """Take a diffusers pipeline apart.

    Args:
        pipeline: of one of the classes in `family.FAMILIES`.
        name: what the user called it.
        resolution: side of the images, pixels; 0 takes the pipeline's own.
        device: where the denoiser and the VAE go.
        frames: of a sample; more than 1 is a video.

    Returns:
        The base.

    Raises:
        ValueError: an unsupported pipeline, a resolution that its VAE and denoiser cannot divide evenly, or a number of
            frames that the family cannot make.
    """
    family = family_of(type(pipeline).__name__, name)
    check_frames(family, frames, name)
    take_apart = importlib.import_module(f".{family.module}", __package__).take_apart
    if family.video:
        return take_apart(pipeline, name, resolution, device, frames)
    return take_apart(pipeline, name, resolution, device)


def _call(path: str, frames: int, resolution: int) -> Base:
    """Call a function of the user's own."""
    if frames > 1:
        raise ValueError(
            f"base.frames is {frames}, but {path} is a function of your own, which decides the frames itself: set "
            "base.frames to 1"
        )
    if resolution:
        logger.warning("base.resolution is %d and has no effect: %s decides the resolution itself", resolution, path)
    module, _, function = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        inspect.signature(make).bind()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"base {path!r}: cannot import it as module:function ({error})") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"base {path!r}: it must be a function that takes no arguments ({error})") from error
    base = make()
    if not isinstance(base, Base):
        raise ValueError(f"base {path!r} returned {type(base).__name__}: it must return a diffusers_model.Base")
    return base
