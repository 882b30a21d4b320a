"""What the families of flow-matching bases share: the run over their schedule, and the base of a transformer pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..export import transformer_bytes
from ..flow import flow_steps
from ..policy import PolicySteps
from .diffusers_model import Base, NetworkCall
from .protocol import Conditioning
from .vae import VaeDecoder


def flow_run(
    tokens: int, scheduler: Mapping[str, Any], steps: int, eta: float, noisy: Iterable[int] | None = None
) -> PolicySteps:
    """The coefficients of a run over a flow schedule, at the times that diffusers' pipelines take.

    Args:
        tokens: image tokens of the transformer, which decide a dynamic shift.
        scheduler: configuration of FlowMatchEulerDiscreteScheduler.
        steps: the number of steps.
        eta: noise scale, above 0 to 1.
        noisy: numbers of the steps with noise; None takes all.
    """
    flow: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler))
    if flow.config.use_dynamic_shifting:
        flow.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=_shift(flow.config, tokens))
    else:
        flow.set_timesteps(steps)
    return flow_steps(torch.as_tensor(flow.sigmas), eta, noisy)


def _shift(config: Any, tokens: int) -> float:
    """The shift grows linearly with the number of tokens (Esser et al. 2024, arXiv 2403.03206, section 5.3.2)."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


def transformer_base(
    pipeline: Any,
    name: str,
    side: int,
    device: torch.device,
    *,
    architecture: str,
    channels: int,
    patch: int,
    encode: Callable[[Sequence[str]], Conditioning],
    call: NetworkCall,
) -> Base:
    """The base of a pipeline with a transformer and an image VAE.

    Args:
        pipeline: diffusers' pipeline.
        name: what the user called it.
        side: of the images, pixels.
        device: where the transformer and the VAE go.
        architecture: for the adapter's metadata.
        channels: of a latent.
        patch: latent pixels that a token is wide.
        encode: prompts -> conditioning.
        call: how the transformer is called.
    """
    height = side // pipeline.vae_scale_factor
    return Base(
        name=name,
        architecture=architecture,
        unet=pipeline.transformer.to(device),
        scheduler=dict(pipeline.scheduler.config),
        latent_shape=(channels, height, height),
        resolution=(side, side),
        encode=encode,
        decode=VaeDecoder(pipeline.vae.to(device)),
        call=call,
        make_steps=partial(flow_run, (height // patch) ** 2),
        save=transformer_bytes,
    )


def visiting(encoders: Sequence[Any], device: torch.device, encode: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
    """Encode with text encoders that are on the device only meanwhile; the results are on the CPU."""
    present = [encoder for encoder in encoders if encoder is not None]
    for encoder in present:
        encoder.to(device)
    with torch.no_grad():
        results = [tensor.cpu() for tensor in encode()]
    for encoder in present:
        encoder.to("cpu")
    return results
