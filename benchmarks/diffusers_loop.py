"""Seconds of a picture by the sweep and by BlendedPipeline, divided by those of a plain loop over diffusers.

The network is random, of SD 1.5's kind, shallow and wide, so that the arithmetic of a call is not drowned by its overhead. In
each round every way makes the same pictures, one after the other in an order that changes, and the clock counts the
processor seconds of this process. A ratio is that of one round; the table has their geometric mean with its 95 % interval.

    python -P benchmarks/diffusers_loop.py --rounds 20
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.intervals import ratio_interval
from diffusion_blend.evaluation.sweep.prepare import prepare
from diffusion_blend.evaluation.sweep.run import Sweep
from diffusion_blend.evaluation.sweep.steps import Cost
from diffusion_blend.pipelines import BlendedPipeline
from diffusion_blend.training.config import AdapterConfig
from diffusion_blend.training.models.bases import base_from_pipeline
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.policy import guide

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from sweeps import settings
from tiny_pipelines import save_tiny_sd

PROMPT, GUIDANCE = "a red cat", 7.5


@dataclass(frozen=True)
class Way:
    """One way to make pictures.

    Attributes:
        name: in the table.
        run: makes the pictures.
        beside: the name of the way whose seconds divide these.
        target: of the ratio; 0 is none.
    """

    name: str
    run: Callable[[], Any]
    beside: str
    target: float


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--size", type=int, default=16, help="latent height and width")
    parser.add_argument("--channels", type=int, nargs="+", default=[192, 384], help="of the network's levels")
    parser.add_argument("--pictures", type=int, default=1, help="at once")
    parser.add_argument("--rank", type=int, default=4, help="of the adapters")
    return parser.parse_args()


def make_pipeline(folder: Path, chosen: argparse.Namespace) -> Any:
    """A pipeline with a wide network and tiny other parts."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(save_tiny_sd(folder / "tiny"), local_files_only=True)
    levels = len(chosen.channels)
    unet = UNet2DConditionModel(
        sample_size=chosen.size,
        block_out_channels=tuple(chosen.channels),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    pipe.register_modules(unet=unet.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_adapter(file: Path, pipe: Any, chosen: argparse.Namespace, seed: int) -> Path:
    """An adapter with random factors on all attention projections, as the trainer writes it."""
    own = base_from_pipeline(pipe, "wide", 0, torch.device("cpu"))
    base = dataclasses.replace(own, unet=copy.deepcopy(own.unet))  # peft's layers would stay in the network
    model = DiffusersModel(base, AdapterConfig(rank=chosen.rank, alpha=float(chosen.rank)), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    file.write_bytes(model.export({"diffusion_blend.kl_weight": "1"}))
    return file


def plain_loop(pipe: Any, ready: Sweep, chosen: argparse.Namespace) -> Callable[[], Any]:
    """A loop over diffusers' own network, scheduler and decoder, from the sweep's noise."""
    chunk = ready._chunk(range(chosen.pictures))
    rows, noise = chunk.conditioning, chunk.noise[:, 0]
    texts = torch.cat([rows.empty["encoder_hidden_states"], rows.prompt["encoder_hidden_states"]])

    @torch.inference_mode()
    def run() -> torch.Tensor:
        scheduler: Any = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(chosen.steps)
        latents, generator = noise, torch.Generator().manual_seed(0)
        for timestep in scheduler.timesteps:
            output = pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=texts, return_dict=False)[0]
            empty, prompt = output.chunk(2)
            output = guide(prompt, empty, GUIDANCE)
            latents = scheduler.step(output, timestep, latents, eta=1.0, generator=generator, return_dict=False)[0]
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    return run


def swept(ready: Sweep, method: str, chosen: argparse.Namespace) -> Callable[[], Any]:
    """All that the sweep does for pictures, but scoring and writing them."""
    point = next(point for point in ready.points if point.method == method)

    def run() -> torch.Tensor:
        samples = ready.runner.sample(point, ready._chunk(range(chosen.pictures)), Cost())
        with torch.inference_mode():
            return ready.runner.network.decode(samples.latents)

    return run


def ways(folder: Path, chosen: argparse.Namespace) -> list[Way]:
    pipe = make_pipeline(folder, chosen)
    files = {name: write_adapter(folder / f"{name}.safetensors", pipe, chosen, i) for i, name in enumerate("ab")}
    config = settings(
        folder / "out",
        folder / "tiny",
        files,
        methods=["base", "stochastic", "blend"],
        steps=chosen.steps,
        guidance_scale=GUIDANCE,
        images_per_point=chosen.pictures,
        measure_kl=False,
    )
    base = base_from_pipeline(pipe, "wide", 0, torch.device("cpu"))
    ready = prepare(config, Worker(torch.device("cpu"), True), base)
    blended = BlendedPipeline(pipe, files)
    call = {
        "prompt": [PROMPT] * chosen.pictures,
        "num_inference_steps": chosen.steps,
        "guidance_scale": GUIDANCE,
        "eta": 1.0,
        "output_type": "pt",
    }
    loop, own = "plain loop", "plain pipeline"
    return [
        Way(loop, plain_loop(pipe, ready, chosen), loop, 0),
        Way("sweep, base", swept(ready, "base", chosen), loop, 1.02),
        Way("sweep, stochastic", swept(ready, "stochastic", chosen), loop, 1.05),
        Way("sweep, blend of two", swept(ready, "blend", chosen), loop, 2.1),
        Way(own, lambda: pipe(**call), own, 0),
        Way("pipeline, base", lambda: blended(**call, weights=[1, 1], kl_scale=0.0), own, 1.02),
        Way("pipeline, stochastic", lambda: blended(**call, weights=[1, 1], method="stochastic"), own, 1.05),
        Way("pipeline, blend of two", lambda: blended(**call, weights=[1, 1]), own, 2.1),
    ]


def measure(each: list[Way], rounds: int) -> dict[str, list[float]]:
    """The processor seconds of every way in every round."""
    seconds: dict[str, list[float]] = {way.name: [] for way in each}
    for number in range(-1, rounds):  # the first round warms up
        first = number % len(each)
        for way in each[first:] + each[:first]:
            start = time.process_time()
            way.run()
            if number >= 0:
                seconds[way.name].append(time.process_time() - start)
    return seconds


def table(each: list[Way], seconds: dict[str, list[float]]) -> str:
    rounds = np.arange(len(seconds[each[0].name]))
    lines = ["| way | seconds (median) | ratio | target |", "|---|---|---|---|"]
    for way in each:
        median = float(np.median(seconds[way.name]))
        if not way.target:
            lines.append(f"| {way.name} | {median:.3f} | 1 | |")
            continue
        ratio = ratio_interval(seconds[way.name], seconds[way.beside], rounds)
        verdict = "reached" if ratio.mean <= way.target else "missed"
        lines.append(
            f"| {way.name} | {median:.3f} | {ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) | {way.target:g}, {verdict} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    chosen = options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        each = ways(Path(folder), chosen)
        print(table(each, measure(each, chosen.rounds)))


if __name__ == "__main__":
    main()
