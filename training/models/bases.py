"""Loads a base model: hub id, diffusers folder, single checkpoint, or a function of the user's own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import BaseConfig
from .diffusers_model import Base
from .protocol import Conditioning

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUPPORTED = {"StableDiffusionPipeline": StableDiffusionPipeline, "StableDiffusionXLPipeline": StableDiffusionXLPipeline}
_SUPPORTED_TEXT = (
    "supported are Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) and SDXL (StableDiffusionXLPipeline)"
)


def load_base(config: BaseConfig, device: torch.device, *, allow_download: bool) -> Base:
    """Load what is to be fine-tuned.

    Args:
        config: path, configuration of a single checkpoint, resolution, precision.
        device: where the UNet and the VAE go; text encoders visit it only to encode.
        allow_download: permit fetching what is not on this machine.

    Returns:
        The base.

    Raises:
        ValueError: it cannot be found or read, it is a kind of model that is not supported, the resolution does not
            fit, or fp16 was asked for without a GPU.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError("base.precision fp16 needs a GPU: use fp32 or bf16 on the CPU")
    if ":" in config.path and not Path(config.path).exists():
        return _call(config.path)
    dtype = DTYPES[config.precision]
    if config.path.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise ValueError(f"base {config.path}: pickled checkpoints can run code and are not read; use .safetensors")
    if config.path.endswith(".safetensors"):
        pipeline = _from_file(config, dtype, allow_download=allow_download)
    else:
        pipeline = _from_folder_or_hub(config, dtype, allow_download=allow_download)
    return base_from_pipeline(pipeline, config.path, config.resolution, device)


def _call(path: str) -> Base:
    module, _, function = path.partition(":")
    try:
        base = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"base {path!r}: cannot import it as module:function ({error})") from error
    if not isinstance(base, Base):
        raise ValueError(f"base {path!r} returned {type(base).__name__}: it must return a diffusers_model.Base")
    return base


def _from_folder_or_hub(config: BaseConfig, dtype: torch.dtype, *, allow_download: bool) -> Any:
    folder = Path(config.path)
    if folder.is_dir():
        _check_class(_pipeline_class(folder), config.path)
    elif folder.is_absolute() or config.path.startswith(".") or config.path.count("/") != 1:
        raise ValueError(f"base {config.path!r}: no such folder or file, and not a hub id (owner/name)")
    from diffusers import DiffusionPipeline  # the class named in model_index.json

    try:
        pipeline = DiffusionPipeline.from_pretrained(
            config.path,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=not allow_download,
            **({"safety_checker": None} if folder.is_dir() and "safety_checker" in _index(folder) else {}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        advice = (
            "is the folder complete and does it hold .safetensors weights?"
            if folder.is_dir()
            else "it is not on this machine: give a local folder, or --allow_download true to fetch it from "
            f"https://huggingface.co/{config.path} (several GB, under the licence stated there)"
        )
        raise ValueError(f"cannot read base {config.path!r}: {advice} ({error})") from error
    _check_class(type(pipeline).__name__, config.path)
    return pipeline


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def _pipeline_class(folder: Path) -> str:
    try:
        return str(_index(folder)["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"base {folder}: no readable model_index.json, so not a diffusers folder") from error


def _check_class(name: str, path: str) -> None:
    if name not in SUPPORTED:
        raise ValueError(f"base {path!r} is a {name}, which this trainer does not support yet; {_SUPPORTED_TEXT}")


def _from_file(config: BaseConfig, dtype: torch.dtype, *, allow_download: bool) -> Any:
    path = Path(config.path)
    if not path.is_file():
        raise ValueError(f"base {config.path!r}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read base {path}: not a whole .safetensors file ({error})") from error
    kind = infer_diffusers_model_type(shapes)
    if kind not in ("v1", "v2", "xl_base"):
        raise ValueError(f"base {path} looks like {kind!r}, which this trainer does not support yet; {_SUPPORTED_TEXT}")
    cls = StableDiffusionXLPipeline if kind == "xl_base" else StableDiffusionPipeline
    name = config.config or str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])
    try:
        if not allow_download and not Path(name).is_dir():
            # from_single_file asks the hub for a configuration that is not cached even with local_files_only=True
            # (diffusers 0.42.1, loaders/single_file.py), so it only ever gets a folder.
            name = snapshot_download(name, local_files_only=True)
        return cls.from_single_file(str(path), torch_dtype=dtype, local_files_only=not allow_download, config=name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"cannot build a pipeline from {path} ({error}): give its configuration and tokenizers with --base.config "
            "(a diffusers folder of the same kind), or --allow_download true to fetch them (a few MB)"
        ) from error


def base_from_pipeline(pipeline: Any, name: str, resolution: int, device: torch.device) -> Base:
    """Take a diffusers pipeline apart.

    Args:
        pipeline: a StableDiffusionPipeline or StableDiffusionXLPipeline.
        name: what the user called it.
        resolution: side of the images, pixels; 0 takes the pipeline's own.
        device: where the UNet and the VAE go.

    Returns:
        The base.

    Raises:
        ValueError: an unsupported pipeline, or a resolution that its VAE and UNet cannot halve evenly.
    """
    _check_class(type(pipeline).__name__, name)
    unet, vae = pipeline.unet.to(device), pipeline.vae.to(device)
    scale = pipeline.vae_scale_factor
    side = resolution or unet.config.sample_size * scale
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    if side % (scale * halvings):
        raise ValueError(f"base.resolution {side}: it must be a multiple of {scale * halvings} for {name}")
    if bool(getattr(vae.config, "force_upcast", False)) and vae.dtype == torch.float16:
        vae.to(dtype=torch.float32)  # SDXL's VAE overflows in fp16
    is_sdxl = isinstance(pipeline, StableDiffusionXLPipeline)
    return Base(
        name=name,
        architecture="sdxl" if is_sdxl else {768: "sd_v1", 1024: "sd_v2"}.get(unet.config.cross_attention_dim, "sd"),
        unet=unet,
        scheduler=dict(pipeline.scheduler.config),
        latent_shape=(unet.config.in_channels, side // scale, side // scale),
        resolution=(side, side),
        encode=_SdxlEncoder(pipeline, side, device) if is_sdxl else _SdEncoder(pipeline, device),
        decode=_VaeDecoder(vae),
    )


class _SdEncoder:
    """One CLIP text encoder; it visits the device only to encode."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self.pipeline, self.device = pipeline, device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        self.pipeline.text_encoder.to(self.device)
        prompt, empty = self.pipeline.encode_prompt(
            list(prompts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=None
        )
        self.pipeline.text_encoder.to("cpu")
        prompt, empty = prompt.cpu(), empty.cpu()
        return Conditioning(
            {"encoder_hidden_states": prompt}, {"encoder_hidden_states": empty}, prompt.float().mean(dim=1)
        )


class _SdxlEncoder:
    """Two CLIP text encoders and SDXL's micro-conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2).

    The picture counts as uncropped and of its own size: time ids (height, width, 0, 0, height, width).
    """

    def __init__(self, pipeline: Any, side: int, device: torch.device) -> None:
        self.pipeline, self.side, self.device = pipeline, side, device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        encoders = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        for encoder in encoders:
            encoder.to(self.device)
        prompt, empty, pooled, empty_pooled = self.pipeline.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        for encoder in encoders:
            encoder.to("cpu")
        ids = torch.tensor([[self.side, self.side, 0, 0, self.side, self.side]], dtype=torch.float32)
        ids = ids.repeat(len(prompts), 1)
        return Conditioning(
            {"encoder_hidden_states": prompt.cpu(), "text_embeds": pooled.cpu(), "time_ids": ids},
            {"encoder_hidden_states": empty.cpu(), "text_embeds": empty_pooled.cpu(), "time_ids": ids},
            pooled.float().cpu(),
        )


class _VaeDecoder:
    """Latents to images in 0..1."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def __call__(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        latents = latents / config.scaling_factor
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            std = torch.tensor(config.latents_std, device=latents.device).view(1, -1, 1, 1)
            mean = torch.tensor(config.latents_mean, device=latents.device).view(1, -1, 1, 1)
            latents = latents * std + mean
        image = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)
