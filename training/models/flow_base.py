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
from .diffusers_model import AdapterWriter, Base, NetworkCall
from .protocol import Conditioning
from .quantised import placed
from .schedulers import SchedulerChoice, SchedulerRun, flow_scheduler
from .vae import VaeDecoder

Shift = Callable[[Any, int, int], float]


def flow_run(
    tokens: int,
    scheduler: Mapping[str, Any],
    steps: int,
    eta: float,
    noisy: Iterable[int] | None = None,
    *,
    even: bool = False,
    shift: Shift | None = None,
) -> PolicySteps:
    """The coefficients of a run over a flow schedule, at the times that diffusers' pipelines take.

    Args:
        tokens: image tokens of the transformer, which decide a dynamic shift.
        scheduler: configuration of FlowMatchEulerDiscreteScheduler.
        steps: the number of steps.
        eta: noise scale, above 0 to 1.
        noisy: numbers of the steps with noise; None takes all.
        even: shift the evenly spaced times 1, 1 - 1/steps, ..., 1/steps, as most pipelines do. Otherwise only a dynamic
            schedule takes these times, and the others are the scheduler's own.
        shift: a dynamic shift from configuration, tokens and steps; None grows linearly with the tokens.
    """
    flow: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler))
    times = flow_times(tokens, scheduler, steps, even=even, shift=shift)
    flow.set_timesteps(**(times or {"num_inference_steps": steps}))
    return flow_steps(torch.as_tensor(flow.sigmas), eta, noisy)


def flow_times(
    tokens: int, scheduler: Mapping[str, Any], steps: int, *, even: bool = False, shift: Shift | None = None
) -> dict[str, Any]:
    """The times and the shift that a pipeline gives to its scheduler; nothing where the scheduler has its own.

    Args:
        tokens, scheduler, steps, even, shift: see `flow_run`.
    """
    flow: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler))
    config = flow.config
    if not even and not config.use_dynamic_shifting:
        return {}
    shifted_by = (shift or linear_shift)(config, tokens, steps)
    return {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist(), "mu": shifted_by}


def flow_scheduler_run(
    tokens: int,
    scheduler: Mapping[str, Any],
    choice: SchedulerChoice,
    steps: int,
    *,
    even: bool = False,
    shift: Shift | None = None,
) -> SchedulerRun:
    """A run of a scheduler of diffusers over a flow schedule; arguments as `flow_run` and `flow_scheduler`."""
    times = partial(flow_times, tokens, scheduler, steps, even=even, shift=shift)
    return flow_scheduler(scheduler, choice, steps, times)


def linear_shift(config: Any, tokens: int, _steps: int) -> float:
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
    even: bool = False,
    shift: Shift | None = None,
    pixels: int = 0,
    decode: Callable[[Tensor], Tensor] | None = None,
    save: AdapterWriter = transformer_bytes,
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
        even, shift: see `flow_run`.
        pixels: side of a latent pixel in the image; 0 takes the VAE's.
        decode: clean latents -> images; None takes the VAE's `VaeDecoder`.
        save: writes the adapter file.
    """
    height = side // (pixels or pipeline.vae_scale_factor)
    return Base(
        name=name,
        architecture=architecture,
        unet=placed(pipeline.transformer, device),
        scheduler=dict(pipeline.scheduler.config),
        latent_shape=(channels, height, height),
        resolution=(side, side),
        encode=encode,
        decode=decode or VaeDecoder(pipeline.vae.to(device)),
        call=call,
        make_steps=partial(flow_run, (height // patch) ** 2, even=even, shift=shift),
        make_scheduler=partial(flow_scheduler_run, (height // patch) ** 2, even=even, shift=shift),
        save=save,
    )


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts of several lengths as one batch, with zeros at the end.

    Args:
        rows: the tokens' features of each text, float[L, D].

    Returns:
        Features float[B, longest L, D], and 1 for each token of a text, int64[B, longest L].
    """
    mask = torch.nn.utils.rnn.pad_sequence(
        [row.new_ones(len(row), dtype=torch.int64) for row in rows], batch_first=True
    )
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of each text's own tokens, float32[B, D], for the value function."""
    weights = mask.float()[..., None]
    return (features.float() * weights).sum(1) / weights.sum(1)
