"""Refusals of settings that an algorithm cannot work with. Standard library only, so that refusals are quick."""

from __future__ import annotations

from collections.abc import Callable

from ..config import TrainConfig

Requirement = Callable[[TrainConfig, int, int], None]
"""Settings, number of noisy steps, number of prompts -> nothing; raises a ValueError."""


def a_step_fits_the_buffer(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse an optimizer step that takes more than the first iteration or the buffer holds.

    Raises:
        ValueError: it does.
    """
    sampling, step = config.sampling, config.sampling.batch * config.optimizer.accumulate
    # With all steps noisy the last one may still have no noise (final alpha 1): one less is counted.
    fresh = sampling.samples * min(noisy, sampling.steps - 1)
    if step > min(fresh, config.algorithm.buffer):
        raise ValueError(
            f"an optimizer step takes {step} denoising steps (sampling.batch {sampling.batch} x optimizer.accumulate "
            f"{config.optimizer.accumulate}), but the first iteration gives {fresh} and algorithm.buffer holds "
            f"{config.algorithm.buffer}: lower optimizer.accumulate or raise sampling.samples"
        )


def whole_passes_over_steps(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse optimizer steps that do not divide an iteration's denoising steps.

    Raises:
        ValueError: they do not.
    """
    if noisy < config.sampling.steps:  # the last step of all may be without noise, which only the base knows
        fresh = config.sampling.samples * noisy
        check_passes(config.algorithm.name, "denoising steps", fresh, _per_step(config))


def whole_passes_over_images(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse optimizer steps that do not divide an iteration's images.

    Raises:
        ValueError: they do not.
    """
    check_passes(config.algorithm.name, "images", config.sampling.samples, _per_step(config))


def draft_steps_fit(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse more steps with gradient than there are, and several noises for more than the last step.

    Raises:
        ValueError: there are.
    """
    algorithm, steps = config.algorithm, config.sampling.steps
    if algorithm.draft_steps > steps:
        raise ValueError(f"algorithm.draft_steps is {algorithm.draft_steps}, but sampling.steps is {steps}: lower it")
    if algorithm.draft_noises > 1 and algorithm.draft_steps != 1:
        raise ValueError(
            f"algorithm.draft_noises is {algorithm.draft_noises}, which is for the last step alone: set algorithm.draft_steps 1"
        )


def whole_groups(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse an iteration that does not hold whole groups.

    Raises:
        ValueError: it does not.
    """
    group, samples = config.algorithm.group, config.sampling.samples
    if samples % group:
        raise ValueError(
            f"sampling.samples {samples} is not a multiple of algorithm.group {group}: an iteration must hold whole groups"
        )


def kl_weight_above_zero(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse a KL weight of 0.

    Raises:
        ValueError: it is 0.
    """
    if config.algorithm.kl_weight == 0:
        raise ValueError(
            "algorithm.kl_weight is 0: rwr weighs samples by exp(reward / kl_weight), so it must be above 0"
        )


def several_images_a_prompt(config: TrainConfig, noisy: int, prompts: int) -> None:  # noqa: ARG001
    """Refuse a run that never holds two images of a prompt: all weights would be 1.

    Raises:
        ValueError: the buffer holds fewer than two images a prompt when it is fullest.
    """
    held = min(config.algorithm.buffer, config.sampling.samples * config.run.iterations)
    if held < 2 * prompts:
        raise ValueError(
            f"rwr compares images of the same prompt, but the buffer holds at most {held} images of {prompts} prompts "
            "(algorithm.buffer, or sampling.samples x run.iterations): with one image a prompt all weights are 1 and nothing "
            "is learned. Lower prompts.count or raise algorithm.buffer and sampling.samples"
        )


def check_passes(name: str, unit: str, fresh: int, per_step: int) -> None:
    """Check that the fresh data divides evenly into optimizer steps.

    Args:
        name: of the algorithm.
        unit: the name of one row of data.
        fresh: rows per iteration.
        per_step: rows per optimizer step.

    Raises:
        ValueError: it does not.
    """
    if fresh % per_step:
        raise ValueError(
            f"{name} goes through all {fresh} {unit} of an iteration in optimizer steps of {per_step} (sampling.batch x "
            "optimizer.accumulate x processes): choose optimizer.accumulate so that this divides"
        )


def _per_step(config: TrainConfig) -> int:
    return config.sampling.batch * config.optimizer.accumulate
