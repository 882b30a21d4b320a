"""Speed and memory of sampling and updating: samples per second and peak memory, with and without checkpointing.

On a GPU it uses random weights of the true SD 1.5 (512 x 512) and SDXL (1024 x 1024) architecture in bf16, the authors' LoRA
and batches 1 to 8. It also uses the settings of kvablack/ddpo-pytorch (its README: fp16, LoRA, batch 1, about 10 GB). Without a
GPU it uses a small UNet on the CPU, only to show that the program runs; the memory is then the peak of the process.

    python benchmarks/training_memory.py [--models sd15 sdxl] [--batches 1 2 4 8] [--out table.csv]
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusion_blend.training.config import AdapterConfig
from diffusion_blend.training.models.diffusers_model import Base, DiffusersModel
from diffusion_blend.training.models.protocol import Conditioning, predict_guided
from diffusion_blend.training.objectives import importance_ratio, policy_loss
from diffusion_blend.training.policy import gaussian_kl, gaussian_log_prob, step_mean, step_std

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SAMPLER_STEPS = 50
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SMALL = {
    "sample_size": 16,
    "cross_attention_dim": 64,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
}
MODELS = {"sd15": SD15, "sdxl": SDXL, "small": SMALL}


def make_model(name: str, device: torch.device, dtype: torch.dtype, *, checkpointing: bool) -> DiffusersModel:
    """Make random weights of the named architecture on the device, so that no copy in main memory counts."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**MODELS[name]).to(dtype)  # pyright: ignore[reportArgumentType]
    side = unet.config.sample_size

    def encode(prompts: object) -> Conditioning:
        raise NotImplementedError("the benchmark makes its own conditioning")

    def decode(latents: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the benchmark measures the denoiser alone")

    base = Base(name, name, unet, SCHEDULER, (4, side, side), (8 * side, 8 * side), encode, decode)
    return DiffusersModel(base, AdapterConfig(), 0, gradient_checkpointing=checkpointing)


def make_conditioning(model: DiffusersModel, batch: int, device: torch.device) -> Conditioning:
    config = model.base.unet.config
    rows = {"encoder_hidden_states": torch.randn(batch, 77, config.cross_attention_dim, device=device)}
    if config.addition_embed_type == "text_time":
        rows["text_embeds"] = torch.randn(batch, 1280, device=device)
        rows["time_ids"] = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]], device=device).repeat(batch, 1)
    return Conditioning(rows, rows, torch.zeros(batch, 1))


def measure(work: Callable[[], None], device: torch.device, repeats: int) -> tuple[float, float]:
    """Measure seconds per call, after one warm-up call, and peak memory in GB."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    return (time.perf_counter() - started) / repeats, peak


def rows_for(
    name: str, batch: int, device: torch.device, dtype: torch.dtype, *, checkpointing: bool, with_kl: bool
) -> dict[str, object]:
    """Return one line of the table: a sampling step and an update of the whole objective, with guidance."""
    model = make_model(name, device, dtype, checkpointing=checkpointing)
    steps = model.policy_steps(SAMPLER_STEPS, 1.0)
    conditioning = make_conditioning(model, batch, device)
    latents = torch.randn(batch, *model.latent_shape, device=device)
    index = torch.full((batch,), SAMPLER_STEPS // 2)
    timesteps = steps.timesteps[index].to(device)
    std = step_std(steps, index, latents)
    target = latents + std * torch.randn_like(latents)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-5)

    def mean(*, base: bool) -> torch.Tensor:
        output = predict_guided(model, latents, timesteps, conditioning, 7.5, base=base)
        return step_mean(steps, index, latents, output)

    @torch.no_grad()
    def sample() -> None:
        mean(base=False)
        if with_kl:
            mean(base=True)

    def update() -> None:
        reference = mean(base=True) if with_kl else None
        current = mean(base=False)
        log_prob = gaussian_log_prob(target, current, std)
        ratio = importance_ratio(log_prob, log_prob.detach())
        loss = policy_loss(ratio, torch.ones_like(ratio), 0.2, "ppo").mean()
        if reference is not None:
            loss = loss + 0.001 * gaussian_kl(current, reference, std).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    sampling, sampling_peak = measure(sample, device, 3)
    updating, updating_peak = measure(update, device, 3)
    return {
        "model": name,
        "algorithm": "dpok" if with_kl else "ddpo",
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "checkpointing": checkpointing,
        "images per second": round(batch / (sampling * SAMPLER_STEPS), 4),
        "sampling GB": round(sampling_peak, 2),
        "updates per second": round(batch / updating, 3),
        "update GB": round(updating_peak, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=None)
    parser.add_argument("--batches", nargs="+", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    print(torch.cuda.get_device_name() if gpu else "CPU (memory: the process's peak so far)", torch.__version__)
    rows: list[dict[str, object]] = []
    for name in options.models or (["sd15", "sdxl"] if gpu else ["small"]):
        for checkpointing in (False, True):
            for batch in options.batches or [1, 2, 4, 8]:
                rows.append(rows_for(name, batch, device, dtype, checkpointing=checkpointing, with_kl=True))
                print(rows[-1], flush=True)
    if gpu:  # ddpo-pytorch's settings: fp16, batch 1, no KL, no checkpointing
        rows.append(rows_for("sd15", 1, device, torch.float16, checkpointing=False, with_kl=False))
        print(rows[-1], flush=True)
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
