"""The families of bases: which file of this folder takes a diffusers pipeline apart. A new family is a file and an entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One kind of base model.

    Attributes:
        module: the file in this folder. Its function ``take_apart(pipeline, name, resolution, device)`` returns a `Base`.
        title: what people call the family.
        checkpoint_kinds: diffusers' names of the family's single ``.safetensors`` checkpoints; empty if none are read.
        video: it can make videos. Its ``take_apart`` takes ``frames`` as well, the number of frames of a sample.
    """

    module: str
    title: str
    checkpoint_kinds: tuple[str, ...] = ()
    video: bool = False


FAMILIES = {
    "StableDiffusionPipeline": Family("stable_diffusion", "Stable Diffusion 1.x and 2.x", ("v1", "v2")),
    "StableDiffusionXLPipeline": Family("sdxl", "SDXL", ("xl_base",)),
    "StableDiffusion3Pipeline": Family("sd3", "Stable Diffusion 3 and 3.5", ("sd3", "sd35_large", "sd35_medium")),
    "FluxPipeline": Family("flux", "Flux.1", ("flux-dev", "flux-schnell")),
    "Flux2KleinPipeline": Family("flux2_klein", "FLUX.2-klein"),
    "QwenImagePipeline": Family("qwen_image", "Qwen-Image"),
    "ZImagePipeline": Family("z_image", "Z-Image"),
    "WanPipeline": Family("wan", "Wan 2.1", video=True),
}
"""The name of diffusers' pipeline class -> its family."""


def family_of(pipeline: str, path: str) -> Family:
    """The family of a pipeline class.

    Args:
        pipeline: the class's name.
        path: of the base, for the message.

    Raises:
        ValueError: this trainer does not know the class.
    """
    if pipeline not in FAMILIES:
        raise ValueError(f"base {path!r} is a {pipeline}, which this trainer does not support yet; {supported()}")
    return FAMILIES[pipeline]


def check_frames(family: Family, frames: int, path: str) -> None:
    """Check that a family can make samples of several frames.

    Args:
        family: of the base.
        frames: of a sample.
        path: of the base, for the message.

    Raises:
        ValueError: it makes images only.
    """
    if frames > 1 and not family.video:
        able = ", ".join(other.title for other in FAMILIES.values() if other.video)
        raise ValueError(
            f"base.frames is {frames}, but {path!r} is {family.title}, which makes images and no videos: set base.frames to 1, "
            f"or take a base of {able}"
        )


def supported() -> str:
    """All families in words."""
    return "supported are " + ", ".join(f"{family.title} ({name})" for name, family in FAMILIES.items())
