"""The settings of a training run: meaning, unit, and the effect of extreme values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..artifacts.settings import LARGEST_SEED, bounded
from .algorithm_config import AlgorithmConfig as AlgorithmConfig

AUTHORS_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention projections that the paper's authors adapt, in self- and cross-attention."""


@dataclass(frozen=True)
class BaseConfig:
    """The model to fine-tune.

    Attributes:
        path: hub id, diffusers folder, single ``.safetensors`` checkpoint, or ``module:function`` that returns a Base.
        config: for a single checkpoint: a diffusers folder or hub id with the matching configuration and tokenizers;
            empty takes the one that fits the checkpoint (downloaded or from the cache).
        resolution: side of the training images, pixels, a multiple of 8; 0 takes the base's own (512, 768 or 1024).
            Smaller is faster and uses less memory, but far below its own size a base makes poor pictures.
        frames: of a sample. 1 is an image. More are a video, for bases of video models only (Wan): 1 more than a multiple of
            4, for example 81 (5 s of Wan). A video's reward is the mean of its frames' rewards. Memory and time grow with
            the number of frames.
        precision: of the frozen weights: fp32, bf16 or fp16 (the adapter is always fp32). bf16 and fp16 halve memory
            and time on a GPU; fp16 needs a GPU and loss scaling, and makes importance ratios coarser.
        gradient_checkpointing: recompute activations in the backward pass: far less memory, about a third more time.
        quantise: the frozen transformer or UNet and the text encoders in fewer bits: none, int8 (half of bf16's memory) or
            nf4 (a quarter). It needs the package bitsandbytes. Predictions move a little, adapter and gradients stay fp32.
        shard: split the frozen denoiser over the processes (torch's FSDP2), for a base that does not fit on one device. Each
            process holds 1 / N of it and gathers the weights of a block when it runs. Needs several processes.
    """

    path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config: str = ""
    resolution: int = bounded(0, minimum=0)
    frames: int = bounded(1, minimum=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    quantise: Literal["none", "int8", "nf4"] = "none"
    shard: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapter.

    Attributes:
        rank: rank of the low-rank update, at least 1. Large ranks learn more and overfit the reward sooner.
        alpha: the update is scaled by alpha / rank, above 0. Larger acts like a larger learning rate.
        targets: endings of the layer names to adapt. The default is every attention projection (the authors').
        start: a LoRA file or folder to begin from, of at most this rank, in any spelling that the Python reader knows. Its layers
            must be among the targets. Empty begins at the base.
    """

    rank: int = bounded(4, minimum=1)
    alpha: float = bounded(4.0, above=0)
    targets: list[str] = field(default_factory=lambda: list(AUTHORS_TARGETS))
    start: str = ""


@dataclass(frozen=True)
class SamplingConfig:
    """How images are made during training.

    Attributes:
        steps: denoising steps per image. Few are fast but each moves far; 50 is the authors' value.
        eta: noise of the DDIM steps, above 0 to 1. Near 0 the policy hardly explores and KLs explode; 1 is DDPM.
        noisy_steps: the steps that are sampled with noise and trained; the others are the ODE and count as a part of the
            decoder. ``all``; ``first:end`` as in a Python slice, with step numbers (0:-2) or shares of the run (0.0:0.8);
            ``auto`` takes 0.0:0.8 for policy gradients and all for the other algorithms. The last, nearly clean steps
            have most of a policy gradient's noise and hardly any of its signal.
        window_steps: of the noisy steps, take only this many side by side, at a place drawn anew in each iteration, as MixGRPO
            does: updates are cheaper, and all steps are trained in the end. 0 takes all.
        guidance_scale: classifier-free guidance, part of the policy. 1 is none (and half the work); 7.5 is usual.
        negative_prompt: what guidance leads away from; empty is the empty prompt. Without effect at guidance_scale 1.
        samples: images per iteration and process. More give a better gradient and take longer.
        batch: images per network call, in sampling and in updates alike (so that fresh importance ratios are exactly
            1: kernels round differently for other batch sizes). Larger is faster until memory ends; it must divide
            ``samples``.
        pool: folder in which the base's samples are kept and looked up (rwr): adapters for other rewards, trained with
            the same base, prompts, sampling and seed, then need no sampling of their own. Empty keeps nothing.
    """

    steps: int = bounded(50, minimum=1)
    eta: float = bounded(1.0, above=0, maximum=1)
    noisy_steps: str = "auto"
    window_steps: int = bounded(0, minimum=0)
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    samples: int = bounded(6, minimum=1)
    batch: int = bounded(2, minimum=1)
    pool: str = ""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for the adapter.

    Attributes:
        learning_rate: step size. 1e-5 is the authors'; DDPO uses 3e-4. Too large collapses into noise.
        weight_decay: pull of the adapter's weights to 0, per step and learning rate. 0 is none.
        clip_norm: largest gradient norm. Small values bound the effect of a single sample; 0.1 is the authors'.
        accumulate: network batches per optimiser step and process. More smooth the gradient at no memory cost.
        schedule: of the learning rate: constant, or linear or cosine, which fall to 0 within ``decay_iterations``.
        warmup: first iterations in which the learning rate rises linearly to its value. 0 is none.
        decay_iterations: iterations, from the first, after which a linear or cosine schedule has reached 0.
    """

    learning_rate: float = bounded(1e-5, above=0)
    weight_decay: float = bounded(0.0, minimum=0)
    clip_norm: float = bounded(0.1, above=0)
    accumulate: int = bounded(12, minimum=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = bounded(0, minimum=0)
    decay_iterations: int = bounded(0, minimum=0)


@dataclass(frozen=True)
class ValueConfig:
    """The value function (dpok). It is fitted after the adapter's update, so no advantage reads a fit to its own return.

    Attributes:
        updates: optimiser steps per iteration. 0 leaves it at the mean return of the first iteration.
        batch: denoising steps per optimiser step and process.
        learning_rate: AdamW's step size.
        hidden: width of its two hidden layers.
    """

    updates: int = bounded(20, minimum=0)
    batch: int = bounded(256, minimum=1)
    learning_rate: float = bounded(1e-3, above=0)
    hidden: int = bounded(256, minimum=1)


@dataclass(frozen=True)
class PromptConfig:
    """The prompts of the run.

    Attributes:
        source: short_drawbench, geneval, or a text file with one prompt per line.
        count: prompts to generate (geneval) or to choose (0 takes all).
        seed: of the generator or choice.
        cache: folder in which encoded prompts are stored, one file a prompt, and from which batches are read; runs with the
            same text encoders share it. Empty holds all in memory (25,000 prompts of SDXL: 16 GB in fp32).
    """

    source: str = "short_drawbench"
    count: int = bounded(0, minimum=0)
    seed: int = bounded(0, minimum=0, maximum=LARGEST_SEED)
    cache: str = ""


@dataclass(frozen=True)
class RunConfig:
    """The run itself.

    Attributes:
        iterations: the number of rounds. Each round samples images and updates the adapter.
        seed: of every random number. The same seed, settings and machine give the same adapter.
        save_every: iterations between checkpoints. A killed run loses at most this many. 1 is safest and slowest.
        keep: checkpoints kept, at least 1.
        watch_every: iterations between sample grids, reward curves and held-out rewards; 0 never.
        watch_samples: images in the grid, always from the same prompts and noise.
        stop_kl: stop when the KL to the base exceeds this many nats per image; 0 never stops.
        stop_diversity: stop when images differ from each other less than this share of what they did at first
            (collapse to one picture); 0 never stops.
        ema: share of the old average that stays in an iteration (exponential moving average of the adapter, 0.9 for example).
            The adapter file and the sample grids take the average; checkpoints hold both. 0 is none; 1 would never move.
        trackers: tensorboard, wandb (offline, unless WANDB_MODE says otherwise), or none of them: ``[]``.
    """

    iterations: int = bounded(1000, minimum=1)
    seed: int = bounded(0, minimum=0, maximum=LARGEST_SEED)
    save_every: int = bounded(25, minimum=1)
    keep: int = bounded(2, minimum=1)
    watch_every: int = bounded(25, minimum=0)
    watch_samples: int = bounded(8, minimum=1)
    stop_kl: float = bounded(0.0, minimum=0)
    stop_diversity: float = bounded(0.05, minimum=0)
    ema: float = bounded(0.0, minimum=0, maximum=0.9999)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a LoRA adapter to maximize a reward under a KL penalty to the base model.

    Attributes:
        output: folder of the run: adapter.safetensors, checkpoints, metrics, pictures. Must be new, unless resuming.
        rewards: name -> weight; the trained reward is the weighted sum. Names: image_reward, pick_score, clip_score,
            hps_v2, aesthetic, jpeg_compressibility, jpeg_incompressibility, colourfulness, module:function, or
            http://host:port/path (docs/examples/reward_server).
        rewards_end: name -> weight towards which the reward weights move linearly; empty keeps them. Names that are missing
            keep their weight.
        rewards_end_iteration: the iteration at which ``rewards_end`` is reached.
        normalise_rewards: divide every reward's distance from its running mean by its running standard deviation before the
            weights count, so that rewards of different units can be added. kl_weight is then in standard deviations per nat.
            grpo and nft normalise within groups in any case.
        heldout: names of rewards that are only watched; one that falls while the trained one rises shows
            over-optimisation.
        reward_folders: name -> local folder with that reward's model, instead of the hub's.
        reward_timeout: seconds that one call of a reward may take, then the run stops and can be resumed; 0 waits for ever
            (for people's votes, say). A call scores one iteration's images of a process, or the watched ones.
        allow_download: permit downloads of the base and the reward models that are not on this machine yet.
        resume: go on from the newest complete checkpoint in the output folder, or start anew if the run in it has none yet.
            Settings that are not given again are those of the run.
        preset: a preset for a base and a graphics card, for example sdxl-24gb; ``diffusion-blend train --preset list``
            names all. Settings that are given win over the preset.
        base: the model.
        adapter: the LoRA.
        sampling: how images are made.
        algorithm: how the adapter learns from the reward.
        optimizer: AdamW for the adapter.
        value: the value function (dpok only).
        prompts: the prompts of the run.
        run: length, seed, checkpoints, stop rules.
    """

    output: str
    rewards: dict[str, float]
    rewards_end: dict[str, float] = field(default_factory=dict)
    rewards_end_iteration: int = bounded(0, minimum=0)
    normalise_rewards: bool = False
    heldout: list[str] = field(default_factory=list)
    reward_folders: dict[str, str] = field(default_factory=dict)
    reward_timeout: float = bounded(3600.0, minimum=0)
    allow_download: bool = False
    resume: bool = False
    preset: str = ""
    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    run: RunConfig = field(default_factory=RunConfig)
