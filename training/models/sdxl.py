"""SDXL: a UNet with micro-conditioning, two CLIP text encoders and a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .diffusers_model import Base
from .protocol import Conditioning
from .stable_diffusion import unet_base
from .text_encoders import visiting


def take_apart(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a StableDiffusionXLPipeline apart; see `bases.base_from_pipeline`."""
    return unet_base(pipeline, name, resolution, device, "sdxl", lambda side: Encoder(pipeline, side, device))


class Encoder:
    """Two CLIP text encoders and SDXL's micro-conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2).

    The picture counts as uncropped and of its own size: time ids (height, width, 0, 0, height, width).
    """

    def __init__(self, pipeline: Any, side: int, device: torch.device) -> None:
        self.pipeline, self.side, self.device = pipeline, side, device

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one conditioning row each, on the CPU."""
        encoders = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        encode = partial(
            self.pipeline.encode_prompt,
            list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        prompt, empty, pooled, empty_pooled = visiting(encoders, self.device, encode)
        ids = torch.tensor([[self.side, self.side, 0, 0, self.side, self.side]], dtype=torch.float32)
        ids = ids.repeat(len(prompts), 1)
        return Conditioning(
            {"encoder_hidden_states": prompt, "text_embeds": pooled, "time_ids": ids},
            {"encoder_hidden_states": empty, "text_embeds": empty_pooled, "time_ids": ids},
            pooled.float(),
        )
