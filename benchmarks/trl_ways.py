"""The trainers that `trl_ddpo` compares, each as a function of the iteration, on one small pipeline of SD 1.5's kind."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = ["a red cat", "a dog", "two birds", "a house by the sea"]
RANK, ALPHA, TARGETS = 4, 4, ["to_k", "to_q", "to_v", "to_out.0"]
"""TRL's adapter, which its trainer does not let one choose."""
SIDE = 16
"""Of a latent."""
CLIP_RANGE, CLIP_NORM = 1e-4, 1.0
"""TRL's, for log-probabilities averaged over a latent's elements."""
Way = Callable[[int], tuple[float, float]]
"""An iteration's number -> its seconds, and the mean reward of the images that it sampled."""


@dataclass(frozen=True)
class Options:
    """What the trainers have in common.

    Attributes:
        folder: of the pipeline, which is made there, and of the runs.
        steps: denoising steps.
        samples: images per iteration.
        batch: images per network call.
        guidance: classifier-free guidance scale.
        learning_rate: of AdamW.
        seed: of the trainers.
        noisy_steps: our setting of that name.
    """

    folder: Path
    steps: int
    samples: int
    batch: int
    guidance: float
    learning_rate: float
    seed: int
    noisy_steps: str = "all"

    def with_window(self) -> Options:
        """The same with our default window of noisy steps."""
        return replace(self, noisy_steps="auto")


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Ten times the excess of red over green and blue, float[B]."""
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def pipeline() -> Any:
    """A StableDiffusionPipeline with random weights, the same at every call, and SD 1.5's schedule.

    It predicts v, because an untrained network then leaves latents near unit variance.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=54, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=1, sample_size=2 * SIDE,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=words(), unet=unet, scheduler=scheduler, **parts
    )
    made.set_progress_bar_config(disable=True)
    return made


def words() -> Any:
    """A CLIP tokenizer of single letters."""
    import json
    import tempfile

    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    known = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    numbers = {token: i for i, token in enumerate(known)}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        files[0].write_text(json.dumps(numbers))
        files[1].write_text("#version: 0.2\n")
        return CLIPTokenizer(str(files[0]), str(files[1]), model_max_length=16)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds of some work and its result: of the processor on a CPU, of the clock on a GPU."""
    if not torch.cuda.is_available():
        started = time.process_time()
        result = work()
        return time.process_time() - started, result
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def make_way(name: str, options: Options) -> Way:
    """Make the trainer of a name: ``trl``, or one of our algorithms."""
    torch.set_num_threads(1)
    return trl_way(options) if name == "trl" else own_way(name, options)


def own_way(name: str, options: Options) -> Way:
    """Our trainer. An iteration goes once through its denoising steps, as TRL's does."""
    from accelerate import Accelerator
    from diffusion_blend.training.config import (
        AdapterConfig,
        AlgorithmConfig,
        OptimizerConfig,
        RunConfig,
        SamplingConfig,
        TrainConfig,
    )
    from diffusion_blend.training.models.bases import base_from_pipeline
    from diffusion_blend.training.models.diffusers_model import DiffusersModel
    from diffusion_blend.training.noisy_steps import noisy_range
    from diffusion_blend.training.trainer import Trainer

    elements = 4 * SIDE * SIDE
    trained = len(noisy_range(options.noisy_steps, options.steps, auto="0.0:0.8"))
    batches = options.samples // options.batch  # optimizer steps of an iteration
    config = TrainConfig(
        output=str(options.folder / f"{name}-{options.noisy_steps}"),
        rewards={"redness": 1.0},
        adapter=AdapterConfig(rank=RANK, alpha=ALPHA, targets=TARGETS),
        sampling=SamplingConfig(
            steps=options.steps, guidance_scale=options.guidance, samples=options.samples, batch=options.batch,
            noisy_steps=options.noisy_steps,
        ),
        algorithm=AlgorithmConfig(
            name=name, clip="ppo", clip_range=math.expm1(elements * CLIP_RANGE), kl_weight=0.001, updates=batches,
            buffer=options.samples * trained,
        ),
        optimizer=OptimizerConfig(
            learning_rate=options.learning_rate, weight_decay=1e-4, clip_norm=CLIP_NORM * elements, accumulate=trained
        ),
        run=RunConfig(seed=options.seed, watch_every=0, trackers=[]),
    )  # fmt: skip
    accelerator = Accelerator()
    base = base_from_pipeline(pipeline(), "small", 0, accelerator.device)
    model = DiffusersModel(base, config.adapter, options.seed)
    trainer = Trainer(config, model, {"redness": redness}, {}, PROMPTS, accelerator)
    return lambda iteration: timed(lambda: trainer.algorithm.iterate(iteration)["reward"])


def trl_way(options: Options) -> Way:
    """TRL's trainer."""
    from trl.models.modeling_sd_base import DefaultDDPOStableDiffusionPipeline
    from trl.trainer.ddpo_config import DDPOConfig
    from trl.trainer.ddpo_trainer import DDPOTrainer

    class Pipeline(DefaultDDPOStableDiffusionPipeline):
        """TRL's pipeline around one that is made already; its own constructor only reads files."""

        def __init__(self, made: Any) -> None:
            self.sd_pipeline, self.use_lora = made, True
            for part in (made.vae, made.text_encoder, made.unet):
                part.requires_grad_(False)

        def set_progress_bar_config(self, *arguments: Any, **settings: Any) -> None:
            """No progress bars."""

    config = DDPOConfig(
        seed=options.seed,
        mixed_precision="no",
        save_freq=10**9,
        sample_num_steps=options.steps,
        sample_guidance_scale=options.guidance,
        sample_batch_size=options.batch,
        sample_num_batches_per_epoch=options.samples // options.batch,
        train_batch_size=options.batch,
        train_learning_rate=options.learning_rate,
        train_max_grad_norm=CLIP_NORM,
        train_clip_range=CLIP_RANGE,
        per_prompt_stat_tracking=True,
        project_kwargs={"project_dir": str(options.folder / "trl")},
    )
    chosen, rewards = random.Random(options.seed), list[float]()

    def reward(images: Tensor, prompts: Sequence[str], metadata: Any) -> tuple[Tensor, dict[str, Any]]:
        scores = redness(images, prompts)
        rewards.extend(scores.tolist())
        return scores, {}

    trainer = DDPOTrainer(config, reward, lambda: (chosen.choice(PROMPTS), {}), Pipeline(pipeline()))

    def step(iteration: int) -> float:
        rewards.clear()
        trainer.step(iteration, iteration)
        return sum(rewards) / len(rewards)

    return lambda iteration: timed(lambda: step(iteration))
