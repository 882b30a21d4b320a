"""Training of the miniature base model, from scratch or from a model, on pictures rendered during training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .language import KIND_SHARES, sample, write
from .model import load_pipeline, make_pipeline
from .renderer import render, sample_scene
from .sizes import SCALING_FACTOR

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import EMAModel

MIN_SNR_GAMMA = 5.0
# At DDIM timesteps above this one the model decides how many things there are, and where. Measured on the model that was
# trained without the emphasis: pictures begun from rendered ones at t = 650 were exact in 96 %, at 850 in 72 %.
LAYOUT_TIMESTEP = 600
TIMESTEPS = 1000


@dataclass(frozen=True)
class LearningConfig:
    """Settings of one training run of the base model.

    Attributes:
        out: folder for the checkpoint, the log and, at the end, the model; a run found there goes on.
        steps: optimiser steps in all. Too few leave wrong colours and counts; may be changed when a run goes on.
        seed: of the initial weights, the pictures, the noise and the dropped prompts. A run from a model takes another
            seed than that model's own, else it sees the same pictures again.
        start: folder of a model whose weights the run begins with, in place of fresh ones. The optimizer is new.
        batch: pictures a step. Less is noisier, more is slower.
        learning_rate: peak of AdamW's. Above about 3e-3 this model diverges.
        warm_up: steps of linear rise at the start.
        cool_down: last fraction of the steps, over which the rate falls to 0; most of the final sharpness comes here.
        drop_prompt: share of pictures trained without their prompt, which guidance (CFG) needs.
        high_noise: share of pictures whose timestep is drawn from 600 to 999 alone, where counts and places are decided;
            the others are drawn from all timesteps. 0 leaves counts and places weak, 1 leaves fine detail untrained.
        pure_noise: share of pictures at timestep 999 whose latent is noise alone, as sampling begins. The schedule leaves so
            much of a picture at 999 that a model reads the places of things from it; without any, it must follow the
            prompt.
        shares: share of each of `language.KINDS` among the prompts. Words of place are learned late: a product of a word and
            a position has no gradient where neither has an effect. Pictures of one thing with its place and a
            ``pure_noise`` of 1 teach them in 150 steps.
        snr_floor: smallest weight of the error in x0; 0 is min-SNR itself, which hardly weighs the highest noise levels.
        ema_decay: of the moving average of the weights, which becomes the model. Nearer to 1 is smoother and slower.
        save_every: steps between checkpoints.
        compile: let torch.compile build the UNet's step (needs a C++ compiler; about 1.8 times as fast on a CPU).
        threads: CPU threads; 0 leaves torch's own choice.
    """

    out: Path
    steps: int = 5000
    seed: int = 0
    start: Path | None = None
    batch: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 200
    cool_down: float = 0.3
    drop_prompt: float = 0.1
    high_noise: float = 0.6
    pure_noise: float = 0.1
    shares: tuple[float, ...] = KIND_SHARES
    snr_floor: float = 0.25
    ema_decay: float = 0.998
    save_every: int = 200
    compile: bool = False
    threads: int = 0


@dataclass
class _Run:
    pipeline: StableDiffusionPipeline
    averages: list[EMAModel]
    optimizer: torch.optim.Optimizer
    step: int
    seconds: float

    @property
    def parts(self) -> list[torch.nn.Module]:
        return [self.pipeline.unet, self.pipeline.text_encoder]


def draw_batch(
    seed: int, step: int, count: int, drop_prompt: float, shares: Sequence[float] = KIND_SHARES
) -> tuple[Tensor, list[str]]:
    """Render one training batch; a function of its arguments alone, so that a resumed run sees the same.

    Returns:
        Latents, float32[count, 12, 16, 16], about unit variance; and the prompts, some of them empty.
    """
    choice = np.random.default_rng([seed, step])
    wanted = [sample(choice, shares=shares) for _ in range(count)]
    scenes = [sample_scene(description, choice) for description in wanted]
    pictures = render(scenes, torch.Generator().manual_seed(int(choice.integers(2**62))))
    latents = torch.nn.functional.pixel_unshuffle(2 * pictures - 1, 2) * SCALING_FACTOR
    prompts = [write(description) if choice.uniform() >= drop_prompt else "" for description in wanted]
    return latents, prompts


def draw_timesteps(count: int, high_noise: float, generator: torch.Generator) -> Tensor:
    """Draw training timesteps, int64[count] in 0..999: uniform, but for a share that is uniform from 600 up."""
    steps = torch.randint(0, TIMESTEPS, (count,), generator=generator)
    layout = torch.randint(LAYOUT_TIMESTEP, TIMESTEPS, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < high_noise, layout, steps)


def loss_weight(alpha_bar: Tensor, snr_floor: float) -> Tensor:
    """Weight of the squared error of the noise prediction.

    ``max(min(snr, 5), floor) / snr`` with ``snr = alpha_bar / (1 - alpha_bar)``: min-SNR (Hang et al. 2023, arXiv
    2303.09556), with a floor for the error in x0, which is the error of the noise prediction divided by the snr.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(min=snr_floor, max=MIN_SNR_GAMMA) / snr


def denoising_loss(
    pipeline: StableDiffusionPipeline, unet: Any, batch: tuple[Tensor, list[str]], key: int, config: LearningConfig
) -> Tensor:
    """Weighted error of the noise prediction: ``mean_t[ weight_t * (eps - eps_theta)^2 ]``.

    ``eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)`` is the noise itself, but where x_t is noise alone. There it is the
    prediction that leads to the picture.

    Args:
        pipeline: the model whose text encoder and noise schedule are used.
        unet: the UNet, or a compiled form of it.
        batch: latents and prompts.
        key: seed of this step's noise and timesteps.
        config: which timesteps are drawn and how they are weighted.
    """
    latents, prompts = batch
    generator = torch.Generator().manual_seed(key)
    steps = draw_timesteps(len(latents), config.high_noise, generator)
    noise = torch.randn(latents.shape, generator=generator)
    is_pure = torch.rand(len(latents), generator=generator) < config.pure_noise
    steps[is_pure] = TIMESTEPS - 1
    alpha_bar = pipeline.scheduler.alphas_cumprod[steps]
    kept, spread = (part.sqrt()[:, None, None, None] for part in (alpha_bar, 1 - alpha_bar))
    noisy = torch.where(is_pure[:, None, None, None], noise, kept * latents + spread * noise)
    wanted = (noisy - kept * latents) / spread
    ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    predicted = unet(noisy, steps, pipeline.text_encoder(ids).last_hidden_state).sample
    error = (predicted - wanted).square().mean(dim=(1, 2, 3))
    return (error * loss_weight(alpha_bar, config.snr_floor)).mean()


def learning_rate(step: int, config: LearningConfig) -> float:
    """Linear rise, plateau, linear fall: the plateau lets a run be lengthened or cut short when it goes on."""
    rise = min(1.0, (step + 1) / max(1, config.warm_up))
    fall = min(1.0, (config.steps - step) / max(1.0, config.cool_down * config.steps))
    return config.learning_rate * min(rise, fall)


def learn(config: LearningConfig, command: str) -> Path:
    """Train the base model, or go on with the run found in ``config.out``.

    Args:
        config: the settings.
        command: the command line, recorded with the model.

    Returns:
        The folder of the finished model, fp16, in diffusers' layout.

    Raises:
        ValueError: the run found was started with another seed.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    run = _start(config)
    unet = torch.compile(run.pipeline.unet) if config.compile else run.pipeline.unet
    parameters = [parameter for part in run.parts for parameter in part.parameters()]
    smooth: float | None = None
    bar = tqdm(range(run.step, config.steps), initial=run.step, total=config.steps, desc="miniature", mininterval=10)
    began = time.monotonic() - run.seconds
    for step in bar:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        key = int(np.random.default_rng([config.seed, step, 1]).integers(2**62))
        batch = draw_batch(config.seed, step, config.batch, config.drop_prompt, config.shares)
        loss = denoising_loss(run.pipeline, unet, batch, key, config)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        run.optimizer.step()
        for average, part in zip(run.averages, run.parts, strict=True):
            average.step(part.parameters())
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        run.step, run.seconds = step + 1, time.monotonic() - began
        if run.step % config.save_every == 0 or run.step == config.steps:
            _save(run, config, smooth)
    return finish(run.pipeline, run.averages, config, run, command)


def _start(config: LearningConfig) -> _Run:
    from diffusers.training_utils import EMAModel

    pipeline = _first_weights(config)
    parts = [pipeline.unet, pipeline.text_encoder]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    averages = [EMAModel(part.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75) for part in parts]
    run = _Run(pipeline, averages, optimizer, 0, 0.0)
    checkpoint = config.out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["seed"] != config.seed:
            raise ValueError(
                f"The run in {config.out} was started with seed {state['seed']}, not {config.seed}: "
                "give that seed to go on with it, or another folder to start again."
            )
        for part, average, saved, mean in zip(parts, averages, state["parts"], state["averages"], strict=True):
            part.load_state_dict(saved)
            average.load_state_dict(mean)
        optimizer.load_state_dict(state["optimizer"])
        run.step, run.seconds = state["step"], state["seconds"]
    return run


def _first_weights(config: LearningConfig) -> StableDiffusionPipeline:
    if config.start is None:
        return make_pipeline(config.out / "tokenizer", config.seed)
    # With its own tokenizer: two runs of its learner may number words differently.
    shutil.copytree(config.start / "tokenizer", config.out / "tokenizer", dirs_exist_ok=True)
    return load_pipeline(config.start)


def _save(run: _Run, config: LearningConfig, loss: float) -> None:
    state = {
        "seed": config.seed,
        "step": run.step,
        "seconds": run.seconds,
        "parts": [part.state_dict() for part in run.parts],
        "averages": [average.state_dict() for average in run.averages],
        "optimizer": run.optimizer.state_dict(),
    }
    # Written beside and then moved: a run stopped while saving still has its last checkpoint.
    beside = config.out / "checkpoint.pt.part"
    torch.save(state, beside)
    beside.replace(config.out / "checkpoint.pt")
    with (config.out / "loss.csv").open("a", encoding="utf-8") as file:
        file.write(f"{run.step},{run.seconds:.0f},{loss:.5f}\n")


def finish(
    pipeline: StableDiffusionPipeline, averages: list[EMAModel], config: LearningConfig, run: _Run, command: str
) -> Path:
    """Write the averaged weights as the finished model, with the record of how it was made."""
    parts = [pipeline.unet, pipeline.text_encoder]
    for part, average in zip(parts, averages, strict=True):
        average.store(part.parameters())
        average.copy_to(part.parameters())
    folder = config.out / "model"
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers 4 reads the slow tokenizer's two files, transformers 5 the one file written above.
    for name in ("vocab.json", "merges.txt"):
        if (config.out / "tokenizer" / name).is_file():  # a start that transformers 5 saved has the one file only
            shutil.copy(config.out / "tokenizer" / name, folder / "tokenizer" / name)
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "start")}
    record = {"command": command, **settings, "pictures": run.step * config.batch, "seconds": round(run.seconds)}
    before = config.start / "training.json" if config.start is not None else None
    if before is not None and before.is_file():
        record["started_from"] = json.loads(before.read_text(encoding="utf-8"))
    record["torch"] = str(torch.__version__)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    pipeline.to(dtype=torch.float32)
    for part, average in zip(parts, averages, strict=True):
        average.restore(part.parameters())
    return folder
