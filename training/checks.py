"""Settings that cannot work are refused before anything is loaded."""

from __future__ import annotations

import math

from .config import TrainConfig


def check_config(config: TrainConfig) -> None:
    """Find contradictions and impossible values.

    Args:
        config: the settings.

    Raises:
        ValueError: naming the setting, the value, and what to do.
    """
    for name, value in _at_least_one(config).items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    for name, value in _not_negative(config).items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}: it must be a finite number, 0 or more")
    for name, value in _positive(config).items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}: it must be a finite number above 0")
    if config.sampling.eta > 1:
        raise ValueError(f"sampling.eta is {config.sampling.eta}: it must be at most 1 (DDPM)")
    if config.algorithm.name == "rwr" and config.algorithm.kl_weight == 0:
        raise ValueError(
            "algorithm.kl_weight is 0: rwr weighs samples by exp(reward / kl_weight), so it must be above 0"
        )
    if config.algorithm.name == "draft" and config.base.gradient_checkpointing:
        raise ValueError(
            "base.gradient_checkpointing is on, which runs the network again with the adapter on where it was off: draft "
            "saves memory by itself (algorithm.recompute)"
        )
    _check_rewards(config)
    _check_batches(config)


def _at_least_one(config: TrainConfig) -> dict[str, float]:
    return {
        "adapter.rank": config.adapter.rank,
        "sampling.steps": config.sampling.steps,
        "sampling.samples": config.sampling.samples,
        "sampling.batch": config.sampling.batch,
        "algorithm.buffer": config.algorithm.buffer,
        "algorithm.updates": config.algorithm.updates,
        "algorithm.epochs": config.algorithm.epochs,
        "algorithm.statistics_window": config.algorithm.statistics_window,
        "optimizer.accumulate": config.optimizer.accumulate,
        "value.batch": config.value.batch,
        "value.hidden": config.value.hidden,
        "run.iterations": config.run.iterations,
        "run.save_every": config.run.save_every,
        "run.keep": config.run.keep,
        "run.watch_samples": config.run.watch_samples,
    }


def _not_negative(config: TrainConfig) -> dict[str, float]:
    return {
        "algorithm.kl_weight": config.algorithm.kl_weight,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "value.updates": config.value.updates,
        "prompts.count": config.prompts.count,
        "base.resolution": config.base.resolution,
        "reward_timeout": config.reward_timeout,
        "run.watch_every": config.run.watch_every,
        "run.stop_kl": config.run.stop_kl,
        "run.stop_diversity": config.run.stop_diversity,
    }


def _positive(config: TrainConfig) -> dict[str, float]:
    return {
        "sampling.eta": config.sampling.eta,
        "algorithm.clip_range": config.algorithm.clip_range,
        "algorithm.advantage_clip": config.algorithm.advantage_clip,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "value.learning_rate": config.value.learning_rate,
    }


def _check_rewards(config: TrainConfig) -> None:
    if not config.rewards:
        raise ValueError("no rewards: give at least one, e.g. --rewards.image_reward 1")
    for name, weight in config.rewards.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} is {weight}: it must be a finite number")
    if all(weight == 0 for weight in config.rewards.values()):
        raise ValueError(f"all weights of {list(config.rewards)} are 0: nothing would be trained")
    twice = sorted(set(config.rewards) & set(config.heldout))
    if twice:
        raise ValueError(f"{', '.join(twice)} is both trained and held out: a trained reward cannot watch itself")


def _check_batches(config: TrainConfig) -> None:
    sampling, step = config.sampling, config.sampling.batch * config.optimizer.accumulate
    if sampling.samples % sampling.batch:
        raise ValueError(f"sampling.samples {sampling.samples} is not a multiple of sampling.batch {sampling.batch}")
    # The last step may be without noise (final alpha 1), and then gives no transition: count one less to be safe.
    fresh = sampling.samples * (sampling.steps - 1)
    if config.algorithm.name == "dpok" and step > min(fresh, config.algorithm.buffer):
        raise ValueError(
            f"an optimiser step takes {step} denoising steps (sampling.batch {sampling.batch} x optimizer.accumulate "
            f"{config.optimizer.accumulate}), but the first iteration gives {fresh} and algorithm.buffer holds "
            f"{config.algorithm.buffer}: lower optimizer.accumulate or raise sampling.samples"
        )


def check_epoch(fresh: int, per_step: int) -> None:
    """See that passes over the fresh data come out even.

    Args:
        fresh: denoising steps (ddpo) or images (draft) per iteration.
        per_step: as many per optimiser step.

    Raises:
        ValueError: they do not.
    """
    if fresh % per_step:
        raise ValueError(
            f"ddpo and draft go through all {fresh} denoising steps (ddpo) or images (draft) per iteration in optimiser "
            f"steps of {per_step} "
            "(sampling.batch x optimizer.accumulate x processes): choose optimizer.accumulate so that this divides"
        )
