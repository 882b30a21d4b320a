"""The miniature diffusion model: small standard classes of diffusers and transformers in the layout of Stable Diffusion 1.

The UNet has no attention at 16 x 16 and a transformer in every block at 8 x 8 and 4 x 4, which ComfyUI's UNetModel
expresses as ``channel_mult [1, 1, 1]``, ``num_res_blocks [1, 1, 1]``, ``transformer_depth [0, 1, 1]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .vocabulary import TOKENS, make_tokenizer

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

LATENT_CHANNELS = 12
LATENT_SIZE = 16
HEADS = 4
TEXT_WIDTH = 64


def weights_folder() -> Path:
    """Where the shipped model lies."""
    return Path(__file__).parent / "weights" / "base"


def make_pipeline(tokenizer_folder: Path, seed: int) -> StableDiffusionPipeline:
    """Build the whole model with fresh weights.

    Args:
        tokenizer_folder: where the tokenizer's files are written.
        seed: of the initial weights; torch's global generator is left as it was.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from .pixel_vae import PixelVAE

    tokenizer: Any = make_tokenizer(tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                projection_dim=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=3,
                num_attention_heads=HEADS,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=1,
            # GroupNorm's 32 groups need at least two channels each: one alone would lose its mean, and with it brightness.
            block_out_channels=(64, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            # diffusers reads this as the number of heads, as ComfyUI's num_heads.
            attention_head_dim=HEADS,
        )
    return StableDiffusionPipeline(
        vae=PixelVAE(),  # pyright: ignore[reportArgumentType]
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM with Stable Diffusion 1.5's noise schedule, so that ComfyUI's ModelSamplingDiscrete fits unchanged.

    Sampling begins at timestep 999, where the model has learned from noise alone; "leading" would begin 12 steps at 914.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def load_pipeline(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load the model from a folder in diffusers' layout; by default the shipped one, from the disk alone.

    Raises:
        ValueError: there is no model in the folder.
    """
    from diffusers import StableDiffusionPipeline

    # diffusers does not import another library's component by itself: give it the VAE.
    from .pixel_vae import PixelVAE

    folder = weights_folder() if folder is None else folder
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"No miniature model in {folder}: train one with 'diffusion-blend miniature train --output {folder}'."
        )
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        vae=PixelVAE.from_pretrained(folder / "vae", torch_dtype=dtype, use_safetensors=True),
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
