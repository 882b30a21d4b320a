"""The miniature as ComfyUI's own MODEL, CLIP and VAE, built from ComfyUI's classes.

The network folds pixels 2 x 2 into channels at its door and unfolds them at its exit, so to the host it is a pixel-space
model: latents are pictures in -1..1 at full size, and the host's pixel-space VAE decodes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.latent_formats import LatentFormat
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ...miniature.comfy_keys import UNET_CONFIG, text_encoder_to_comfy, unet_to_comfy
from ...miniature.sizes import SCALING_FACTOR, SIZE

WEIGHTS = Path(__file__).parents[2] / "miniature" / "weights"
FOLD = 2


class _FoldedUNet(UNetModel):
    """The host's UNet on pictures folded 2 x 2 into channels."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return functional.pixel_shuffle(super().forward(functional.pixel_unshuffle(x, FOLD), *args, **kwargs), FOLD)


class _PictureLatents(LatentFormat):
    """Latents that are pictures; the network sees them at unit variance."""

    latent_channels = 3
    scale_factor = SCALING_FACTOR
    spacial_downscale_ratio = 1

    def __init__(self) -> None:
        self.latent_rgb_factors = torch.eye(3).tolist()  # previews show the picture itself


class Miniature(comfy.supported_models_base.BASE):
    """What the host wants to know of a model: noise schedule and prediction are Stable Diffusion 1.5's, its defaults."""

    unet_extra_config = {}  # noqa: RUF012  (the host's own attribute)
    latent_format = _PictureLatents

    def inpaint_model(self) -> bool:
        return False  # the host takes every network of more than 4 channels for one


class _Tokenizer(SD1Tokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=_ClipTokenizer)


class _ClipTokenizer(SDTokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        config = _text_config()
        super().__init__(
            tokenizer_path=str(WEIGHTS / "base" / "tokenizer"),
            max_length=config["max_position_embeddings"],
            embedding_directory=embedding_directory,
            embedding_size=config["hidden_size"],
            tokenizer_data=tokenizer_data or {},
        )


class _TextEncoder(SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        config = _text_config()
        tokens = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            special_tokens=tokens,
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _ClipModel(SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_TextEncoder)


def load_model() -> Any:
    """The MODEL: a ModelPatcher of the host's UNet in float32 (2.2 M parameters)."""
    config = Miniature(UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, device=offload, unet_model=_FoldedUNet)
    weights = unet_to_comfy(load_file(_weights("unet/diffusion_pytorch_model.safetensors")))
    # Strict: the host's own loading only logs what is missing.
    model.diffusion_model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def load_clip() -> Any:
    """The CLIP: tokenizer and text encoder, float32."""
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, _ClipModel)
    weights = text_encoder_to_comfy(load_file(_weights("text_encoder/model.safetensors")))
    parameters = sum(tensor.numel() for tensor in weights.values())
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options={"dtype": torch.float32})
    missing, unexpected = clip.load_sd({name: tensor.float() for name, tensor in weights.items()})
    if unexpected or [name for name in missing if "text_projection" not in name]:
        raise ValueError(
            f"This ComfyUI's text encoder does not fit the miniature's: missing {missing}, left {unexpected}."
        )
    return clip


def load_vae() -> Any:
    """The VAE: the host's pixel-space one, latents are pictures in -1..1."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def empty_latent(batch_size: int) -> dict[str, Tensor]:
    """An empty latent of the miniature's size, float[B, 3, 32, 32]."""
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(batch_size, 3, SIZE, SIZE, device=device)}


def shipped_adapters() -> dict[str, Path]:
    """The shipped adapters' files by the name under which LoadRewardLoRAs offers them."""
    folders = {"adapters": "miniature", "alignment": "miniature", "stacked": "miniature/stacked"}
    return {
        f"{shown}/{file.name}": file
        for folder, shown in folders.items()
        for file in sorted((WEIGHTS / folder).glob("*.safetensors"))
    }


def _text_config() -> dict[str, Any]:
    return json.loads(Path(_weights("text_encoder/config.json")).read_text(encoding="utf-8"))


def _weights(name: str) -> str:
    path = WEIGHTS / "base" / name
    if not path.is_file():
        raise ValueError(f"The miniature's {path.name} is missing ({path}): install Diffusion Blend again.")
    return str(path)
