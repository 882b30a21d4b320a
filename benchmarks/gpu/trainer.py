"""The trainer on true-size networks of random weights: samples per second and peak memory within a 24 GB card.

One iteration of the project's own algorithm is measured, after a small one that warms the device up. The reward is the mean
brightness, so no reward network counts. The text encoders are not loaded; the trainer keeps theirs off the device as well.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from records import Records, finite
from torch import Tensor
from unit_options import begin, parser

CARD_24_GB = 23.5 * 2**30
"""Bytes that a process can allocate on a card of 24 GB: 24 GiB less about half a GiB for the CUDA context."""

STEPS_OF_DRAFT = "draft_steps"
"""The setting of ``algorithm`` that makes DRaFT-K of DRaFT, where the project has one."""


@dataclass(frozen=True)
class Case:
    """A training to measure.

    Attributes:
        algorithm: its name.
        network: key of `training_memory.MODELS`.
        pixels: side of the image.
        steps: denoising steps of an image.
        samples: images of the measured iteration.
        batch: images per call of the network.
        accumulate: network batches per optimizer step.
        settings: further settings of the algorithm.
    """

    algorithm: str
    network: str
    pixels: int
    steps: int
    samples: int
    batch: int
    accumulate: int
    settings: tuple[tuple[str, Any], ...] = ()


CASES = {
    "draft-sd15": Case("draft", "sd15", 512, 20, 4, 2, 2),
    "dpok-sd15": Case("dpok", "sd15", 512, 50, 6, 2, 12),
    "draft-sdxl": Case("draft", "sdxl", 1024, 10, 1, 1, 1),
    "grpo-sd15": Case("grpo", "sd15", 512, 20, 8, 4, 2),
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


def brightness(images: Tensor, _prompts: Sequence[str]) -> Tensor:
    """Mean brightness, float[B]; differentiable."""
    return images.mean(dim=(1, 2, 3))


def make_model(case: Case, device: torch.device, dtype: torch.dtype, *, checkpointing: bool, tiny: bool) -> Any:
    """The network and a VAE as the trainer takes them, with random weights made on the device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusion_blend.training.config import AdapterConfig
    from diffusion_blend.training.models.diffusers_model import Base, DiffusersModel
    from diffusion_blend.training.models.protocol import Conditioning
    from training_memory import MODELS, SCHEDULER

    config = MODELS["small" if tiny else case.network]
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**config).to(dtype)
        vae = AutoencoderKL(**(VAE | ({"block_out_channels": (32,) * 4} if tiny else {}))).to(dtype)
    vae.eval().requires_grad_(False)
    side = unet.config.sample_size

    def encode(prompts: Sequence[str]) -> Conditioning:
        generator, count = torch.Generator().manual_seed(len(prompts)), len(prompts)
        rows = {"encoder_hidden_states": torch.randn(count, 77, unet.config.cross_attention_dim, generator=generator)}
        if unet.config.addition_embed_type == "text_time":
            rows["text_embeds"] = torch.randn(count, 1280, generator=generator)
            rows["time_ids"] = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]]).repeat(count, 1)
        return Conditioning(rows, rows, rows["encoder_hidden_states"].mean(dim=1))

    def decode(latents: Tensor) -> Tensor:
        image = vae.decode(latents.to(dtype) / VAE["scaling_factor"], return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)

    base = Base(case.network, "sd", unet, SCHEDULER, (4, side, side), (8 * side, 8 * side), encode, decode)
    return DiffusersModel(base, AdapterConfig(), 0, gradient_checkpointing=checkpointing)


def settings_of(case: Case, records: Records) -> Any:
    """The trainer's settings; parts of the case that this checkout lacks are written as missing."""
    from diffusion_blend.training import config
    from diffusion_blend.training.checks import check_config

    known = {field.name for field in dataclasses.fields(config.AlgorithmConfig)}
    algorithm = dict(case.settings)
    if case.algorithm == "draft":
        if STEPS_OF_DRAFT in known:
            algorithm[STEPS_OF_DRAFT] = 1
        else:
            why = "draft takes the gradient through all steps; measured like that, with recomputed steps"
            records.missing(f"DRaFT-1 on {case.network}", why)
    settings = config.TrainConfig(
        output="unused",
        rewards={"brightness": 1.0},
        base=config.BaseConfig(precision="bf16", gradient_checkpointing=case.network == "sdxl"),
        sampling=config.SamplingConfig(steps=case.steps, samples=case.samples, batch=case.batch),
        algorithm=config.AlgorithmConfig(name=case.algorithm, **algorithm),
        optimizer=config.OptimizerConfig(accumulate=case.accumulate),
    )
    if settings.base.gradient_checkpointing:
        try:
            check_config(settings)
        except ValueError as error:
            records.missing(f"gradient checkpointing with {case.algorithm}", str(error))
            settings = dataclasses.replace(settings, base=config.BaseConfig(precision="bf16"))
    check_config(settings)
    return settings


def small(settings: Any) -> Any:
    """The same algorithm with as little work as it takes, to warm the device up."""
    sampling = dataclasses.replace(settings.sampling, steps=2)
    algorithm = dataclasses.replace(settings.algorithm, updates=1)
    return dataclasses.replace(
        settings,
        sampling=sampling,
        algorithm=algorithm,
        optimizer=dataclasses.replace(settings.optimizer, accumulate=1),
    )


def iteration(settings: Any, model: Any, *, cpu: bool) -> Callable[[], dict[str, float]]:
    """One iteration of the algorithm, ready to run."""
    from accelerate import Accelerator
    from diffusion_blend.training.trainer import Trainer

    prompts = [f"prompt {number}" for number in range(8)]
    trainer = Trainer(settings, model, {"brightness": brightness}, {}, prompts, Accelerator(cpu=cpu))
    return lambda: trainer.algorithm.iterate(0)


def measure(case: Case, settings: Any, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Run the warm-up and one iteration; returns the values of the line."""
    values: dict[str, Any] = {"out_of_memory": False, "limit_bytes": None}
    cuda = device.type == "cuda"
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_24_GB / total))
        values["limit_bytes"] = int(min(total, CARD_24_GB))
    dtype = torch.bfloat16 if cuda else torch.float32
    try:
        checkpointing = settings.base.gradient_checkpointing
        model = make_model(case, device, dtype, checkpointing=checkpointing, tiny=tiny)
        iteration(small(settings), model, cpu=not cuda)()
        run = iteration(settings, model, cpu=not cuda)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        figures = run()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    except torch.cuda.OutOfMemoryError as error:
        return values | {"out_of_memory": True, "said": str(error).splitlines()[0]}
    values |= {"seconds": seconds, "samples_per_second": settings.sampling.samples / seconds}
    values["peak_bytes"] = torch.cuda.max_memory_allocated() if cuda else None
    values["reserved_bytes"] = torch.cuda.max_memory_reserved() if cuda else None
    return values | {"figures": {name: finite(float(value)) for name, value in figures.items()}}


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--case", choices=[*CASES, "grpo-sd35m"], required=True, help="what to train")
    options = options_parser.parse_args()
    records, clock = begin(options)
    from diffusion_blend.training.algorithms import ALGORITHMS

    if options.case == "grpo-sd35m":
        records.missing("GRPO on SD3.5-M", "the kit makes networks of Stable Diffusion 1.5 and XL for the trainer only")
        return 0
    case = CASES[options.case]
    if case.algorithm not in ALGORITHMS:
        records.missing(options.case, f"the trainer has no algorithm {case.algorithm}")
        return 0
    if options.tiny:
        case = dataclasses.replace(case, steps=3, samples=min(case.batch * 2, case.samples), accumulate=1, pixels=128)
    settings = settings_of(case, records)
    device = torch.device("cpu" if options.cpu else "cuda")
    values = measure(case, settings, device, tiny=options.tiny)
    records.write(
        "trainer", case=options.case, network="small" if options.tiny else case.network, pixels=case.pixels,
        algorithm=case.algorithm, steps=case.steps, samples=case.samples, batch=case.batch,
        gradient_checkpointing=settings.base.gradient_checkpointing,
        gradient_steps=getattr(settings.algorithm, STEPS_OF_DRAFT, 0) if case.algorithm == "draft" else None, **values,
    )  # fmt: skip
    print(f"{options.case}: {values}; {clock.left():.0f} s left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
