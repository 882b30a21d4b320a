"""Training of the miniature base model, from scratch or from a model, on pictures rendered during training."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from .examples import denoising_loss, draw_batch, mean_latents
from .language import KIND_SHARES
from .layout import learn_layout
from .model import load_pipeline, make_pipeline, make_scheduler

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import EMAModel


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
        mean_of: renderings of each prompt whose mean is the picture in the place of that which is noise alone. The mean is what
            a prediction from noise comes to, and has little noise of its own; 0 takes single pictures.
        layout_steps: steps for which the text encoder alone is trained before; see `layout`. They need ``mean_of``.
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
    mean_of: int = 0
    layout_steps: int = 0
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
    means = mean_latents(config.mean_of, config.seed) if config.mean_of else None
    if means and config.layout_steps and run.step == 0:
        learn_layout(run.pipeline.text_encoder, run.pipeline.tokenizer, means, config.layout_steps, config.seed)
        run.averages[1] = _average(run.pipeline.text_encoder, config)
    smooth: float | None = None
    bar = tqdm(range(run.step, config.steps), initial=run.step, total=config.steps, desc="miniature", mininterval=10)
    began = time.monotonic() - run.seconds
    for step in bar:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        key = int(np.random.default_rng([config.seed, step, 1]).integers(2**62))
        batch = draw_batch(config.seed, step, config.batch, config.drop_prompt, config.shares)
        loss = denoising_loss(run.pipeline, unet, batch, key, config, means)
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


def _average(part: torch.nn.Module, config: LearningConfig) -> EMAModel:
    from diffusers.training_utils import EMAModel

    return EMAModel(part.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)


def _start(config: LearningConfig) -> _Run:
    pipeline = _first_weights(config)
    parts = [pipeline.unet, pipeline.text_encoder]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    averages = [_average(part, config) for part in parts]
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
    pipeline = load_pipeline(config.start)
    pipeline.scheduler = make_scheduler()  # an older model's begins below timestep 999
    return pipeline


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
    for path in folder.rglob("*.json"):  # where the start lay on this machine is nobody's business
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
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
