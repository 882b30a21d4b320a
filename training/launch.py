"""Puts a run together from its settings: devices, rewards, base, trainer."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed

from ..artifacts.files import write_atomically
from ..pipelines.adapter_files import read_adapter
from ..rewards.catalogue import short_names
from ..rewards.load import load_rewards
from ..rewards.protocol import check_differentiable
from .checks import CheckedRun
from .config import TrainConfig
from .export import adapter_metadata
from .models.bases import load_base
from .models.diffusers_model import Base, DiffusersModel
from .resume import SETTINGS, check_resumed
from .start_adapter import begin_with
from .trainer import Trainer
from .unused_settings import warn_of_unused


def launch(checked: CheckedRun) -> Path:
    """Load everything and train; see `train.train`."""
    config, prompts = checked.config, checked.prompts
    algorithm = checked.algorithm.load()
    accelerator = Accelerator(
        mixed_precision="fp16" if config.base.precision == "fp16" else "no",
        log_with=list(config.run.trackers),  # pyright: ignore[reportArgumentType]  (names are allowed)
        project_dir=config.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=patience(config))],
    )
    if accelerator.is_main_process:
        warn_of_unused(config)
    if config.resume:
        check_resumed(config, accelerator.num_processes)
    rewards = load_rewards(
        [*config.rewards, *config.heldout],
        config.reward_folders,
        accelerator.device,
        allow_download=config.allow_download,
    )
    base = load_base(config.base, accelerator.device, allow_download=config.allow_download)
    start = read_adapter("adapter.start", config.adapter.start, base.unet) if config.adapter.start else None
    model = DiffusersModel(
        base,
        config.adapter,
        config.run.seed,
        members=len(config.rewards) if config.algorithm.adapter_per_reward else 1,
        gradient_checkpointing=config.base.gradient_checkpointing,
    )
    if start is not None:
        begin_with(model, start, config.adapter)
    trained = {name: rewards[name] for name in config.rewards}
    heldout = {name: rewards[name] for name in config.heldout}
    if algorithm.needs_reward_gradient:
        check_differentiable(config.algorithm.name, trained, base.resolution, prompts[0])
    # The trainer keys its own randomness; this is for a reward of one's own that draws from the global generators.
    set_seed(config.run.seed + accelerator.process_index)
    has_kl_weight = algorithm.has_kl_penalty and not config.normalise_rewards  # in reward units per nat
    trainer = Trainer(config, model, trained, heldout, prompts, accelerator, _metadata(config, base, has_kl_weight))
    if accelerator.is_main_process:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(config.output) / SETTINGS, yaml.safe_dump(dataclasses.asdict(config)).encode())
    accelerator.wait_for_everyone()
    try:
        return trainer.run()
    finally:
        accelerator.end_training()  # closes the trackers and, with several processes, the process group


def patience(config: TrainConfig) -> timedelta:
    """How long a process waits for the others before the run fails.

    ``(number of rewards + 1) reward_timeout``, because the main process calls one reward after the other while the others
    wait. It is between 30 minutes and 30 days, and 30 days where the rewards have no limit. The backends' own limits are
    10 minutes (NCCL) and 30 minutes (gloo).

    Args:
        config: the settings.
    """
    shortest, longest = timedelta(minutes=30), timedelta(days=30)
    calls = len(config.rewards) + len(config.heldout) + 1
    seconds = calls * config.reward_timeout or longest.total_seconds()
    return max(timedelta(seconds=min(seconds, longest.total_seconds())), shortest)


def _prediction_type(base: Base) -> str:
    # Flow schedules of diffusers have a shift and no prediction type.
    return "flow" if "shift" in base.scheduler else str(base.scheduler.get("prediction_type", "epsilon"))


def _metadata(config: TrainConfig, base: Base, has_kl_penalty: bool) -> dict[str, str]:
    # A reward of one's own is known by its function, a server by its address; the whole name is in the configuration.
    weights = {short: config.rewards[name] for name, short in short_names(config.rewards).items()}
    reward = next(iter(weights)) if len(weights) == 1 else json.dumps(weights)
    return adapter_metadata(
        title=f"{reward} ({Path(config.output).name})",
        architecture=base.architecture,
        base_model=base.name,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        resolution=base.resolution,
        prediction_type=_prediction_type(base),
        training={
            "reward": reward,
            "algorithm": config.algorithm.name,
            "prompts": config.prompts.source,
            "seed": config.run.seed,
            "config": dataclasses.asdict(config),
        }
        | ({"kl_weight": config.algorithm.kl_weight} if has_kl_penalty else {}),
    )
