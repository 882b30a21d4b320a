"""Loads all that a sweep needs, after checking all that can be checked without it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...artifacts.workers import Worker
from ...blending.plans import Gates
from ...blending.preference import Preference
from ...pipelines.adapter_files import AdapterFile, fit_adapter, open_adapter
from ...rewards.guarded import guard
from ...rewards.load import load_rewards
from ...rewards.protocol import Reward, check_differentiable
from ...training.models.bases import load_base
from ...training.models.diffusers_model import Base
from ...training.models.schedulers import SchedulerChoice, check_run
from ...training.prompt_table import PromptTable
from ...training.prompts import load_prompts
from .batches import Batches, first_call
from .checks import check_config, weights_in
from .config import SweepConfig
from .external_scores import keep_scores, read_scores
from .methods import METHODS
from .network import Network
from .points import Point, make_points, points_of, reward_scales
from .recipes import Files
from .records import Records
from .run import Sweep
from .runner import MethodRunner
from .scheduled import Scheduled

logger = logging.getLogger("diffusion_blend")

EXTENDABLE = (
    "methods",
    "weights",
    "grid",
    "method_weights",
    "kl_scales",
    "images_per_point",
    "images_per_prompt",
    "etas",
    "morl",
    "stacked",
    "cross",
    "distilled",
    "conditioned",
    "switch_steps",
    "code_block",
    "code_candidates",
    "rgg_alpha",
    "particles",
    "resample_below",
)
"""Settings that only add points or pictures; the name of a unit's folder depends on them."""
_WITHOUT_EFFECT = (
    "output",
    "save_images",
    "resamples",
    "reward_folders",
    "allow_download",
    "external_scores",
    "claim_expiry",
    "compile_base",
    "work_folder",
)


@dataclass(frozen=True)
class Plan:
    """All that is known of a sweep before a network is loaded.

    Attributes:
        config: the settings.
        prompts: to draw.
        files: the adapter files.
        points: those asked for.
        scales: the number by which each adapter's reward is divided before it is weighed, float[m].
        records: the folder.
        fingerprint: everything that every unit depends on.
    """

    config: SweepConfig
    prompts: Sequence[str]
    files: Files
    points: Sequence[Point]
    scales: Sequence[float]
    records: Records
    fingerprint: Mapping[str, Any]


def _fingerprint(config: SweepConfig, adapters: Sequence[AdapterFile], prompts: Sequence[str]) -> dict[str, Any]:
    """Everything that every unit depends on; a file counts by its content."""
    plain = dataclasses.asdict(config)
    settings = {key: value for key, value in plain.items() if key not in (*EXTENDABLE, *_WITHOUT_EFFECT)}
    # Always 1 in a sweep (`checks`), and not in the folders of versions without videos.
    settings["base"] = {key: value for key, value in plain["base"].items() if key != "frames"}
    settings["adapters"] = {adapter.name: adapter.digest for adapter in adapters}
    settings["prompts"] = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return settings


def plan(config: SweepConfig) -> Plan:
    """Check settings, files and the folder, without a network and without writing.

    Raises:
        ValueError: a setting, adapter file, prompt source, table of scores or folder that cannot work.
    """
    check_config(config)
    prompts = load_prompts(config.prompts.source, config.prompts.count, config.prompts.seed)
    if config.images_per_prompt:
        config = replace(config, images_per_point=config.images_per_prompt * len(prompts))
    files = _open_files(config)
    records, fingerprint = Records(Path(config.output)), _fingerprint(config, files.adapters, prompts)
    records.compare(fingerprint)
    for file in config.external_scores:
        read_scores(Path(file))
    points, scales = make_points(config, files), reward_scales(config, files.adapters)
    records.check_points(points)
    return Plan(config, prompts, files, points, scales, records, fingerprint)


def _open_files(config: SweepConfig) -> Files:
    def for_preferences(method: str, given: Mapping[str, str]) -> dict[Gates, AdapterFile]:
        keys = weights_of(method, given, config)
        return {weights: open_adapter(f"{method} {key}", given[key]) for weights, key in keys.items()}

    return Files(
        [open_adapter(name, file) for name, file in config.adapters.items()],
        for_preferences("morl", config.morl),
        [open_adapter(name, config.stacked[name]) for name in config.adapters] if config.stacked else [],
        [open_adapter(Path(file).name, file) for file in config.cross],
        _distilled_where_used(for_preferences("distilled", config.distilled)),
        open_adapter("conditioned", config.conditioned) if config.conditioned else None,
    )


def _distilled_where_used(files: dict[Gates, AdapterFile]) -> dict[Gates, AdapterFile]:
    for weights, file in files.items():
        if file.baked_at is None:
            continue
        # A file may have been baked without the adapters of weight 0.
        baked, asked = ([value for value in values if abs(value) > 1e-3] for values in (file.baked_at, weights))
        if len(baked) != len(asked) or not np.allclose(baked, asked, atol=1e-3):
            said, wanted = (", ".join(f"{value:.3g}" for value in values) for values in (file.baked_at, weights))
            raise ValueError(f"{file.name} was baked at the coefficients {said}, as its header says, not at {wanted}")
    return files


def prepare(config: SweepConfig, worker: Worker, base: Base | None = None) -> Sweep:
    """Load everything a sweep needs, and join its folder.

    Args:
        config: the settings.
        worker: this process.
        base: a model that is already loaded, instead of the settings'.

    Raises:
        ValueError: a setting, base, adapter, reward or folder that cannot work, before any picture is made.
    """
    planned = plan(config)
    config = planned.config
    wanted = planned.records.rewards() | config.rewards
    rewards = _load_rewards(wanted, config, worker)
    base = base or load_base(config.base, worker.device, allow_download=config.allow_download)
    network = Network(base, config.guidance_scale, compile_base=config.compile_base)
    adapters = [fit_adapter(file, base.unet) for file in planned.files.adapters]
    mixtures = {file.digest: fit_adapter(file, base.unet) for file in planned.files.beside}
    for method in config.methods:
        if METHODS[method].needs_gradient:
            followed = {name: rewards[name] for name in config.adapters}
            check_differentiable(method, followed, base.resolution, planned.prompts[0])
    steps = base.policy_steps(config.steps, config.eta)
    runner = MethodRunner(config, network, steps, adapters, mixtures, rewards, scheduled(config, base))
    table = PromptTable(_Encoder(base), planned.prompts)
    join(planned)
    batches = Batches(first_call(config, worker.device))
    return Sweep(config, runner, planned.points, planned.scales, rewards, table, planned.records, worker, batches)


def scheduled(config: SweepConfig, base: Base) -> Scheduled | None:
    """The loop of the scheduler that the settings name; None for the policy's own steps.

    Raises:
        ValueError: a scheduler that cannot run on this base.
    """
    if not config.scheduler:
        return None
    choice = SchedulerChoice(config.scheduler, config.scheduler_options, config.eta)
    make = partial(base.scheduler_run, choice, config.steps)
    check_run(make, config.scheduler)
    if config.measure_kl:
        logger.info("%s tells no distribution of its steps, so the KL is not measured", config.scheduler)
    return Scheduled(make, config.seed)


def join(planned: Plan) -> None:
    """Join a sweep's folder, and record there the points that were asked for.

    Raises:
        ValueError: the folder belongs to another sweep.
    """
    config, records = planned.config, planned.records
    earlier = records.earlier_points(list(config.adapters))
    records.open(planned.fingerprint)
    for key, count in earlier.items():
        known = points_of([key], config, planned.files) if key[0] in METHODS else []
        records.add_points([replace(p, images=count) for p in known if (records.folder / "units" / p.folder).exists()])
    records.add_points(planned.points)
    keep_scores(config.external_scores, records.folder / "external", list(records.rewards()))


def _load_rewards(wanted: Mapping[str, str], config: SweepConfig, worker: Worker) -> dict[str, Reward]:
    loaded = load_rewards(
        dict.fromkeys(wanted.values()), config.reward_folders, worker.device, allow_download=config.allow_download
    )
    guarded = guard(loaded, advice="Fix the reward and run the command again; the finished pictures are kept")
    return {name: _affine(guarded[reward], config.affine.get(name)) for name, reward in wanted.items()}


def _affine(reward: Reward, numbers: Sequence[float] | None) -> Reward:
    if numbers is None:
        return reward
    factor, offset = numbers

    def scaled(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return factor * reward(images, prompts) + offset

    return scaled


@dataclass(frozen=True)
class _Encoder:
    base: Base

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        return self.base.encode(prompts)


def weights_of(method: str, given: Mapping[str, str], config: SweepConfig) -> dict[Gates, str]:
    """The preferences that have an adapter of their own -> how the settings name them.

    Args:
        method: morl or distilled.
        given: its setting.
        config: all settings.
    """
    names = list(config.adapters)
    return {Preference(weights_in(method, key, config)).normalised(names): key for key in given}
