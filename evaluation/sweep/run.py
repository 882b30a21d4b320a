"""A sweep: each point's pictures are sampled, scored and written, one unit of work at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from ...artifacts.pictures import to_pil
from ...artifacts.settings import check_bounds
from ...blending.plans import Gates
from ...blending.preference import Preference
from ...rewards.catalogue import check_names
from ...rewards.load import load_rewards
from ...rewards.protocol import Reward, check_differentiable, score
from ...training.models.bases import load_base
from ...training.models.diffusers_model import Base
from ...training.prompt_table import PromptTable
from ...training.prompts import load_prompts
from ...training.randomness import trajectory_noise
from .adapters import Adapter, read_adapter
from .config import SweepConfig
from .methods import MethodRunner
from .network import Network
from .points import Point, make_points, reward_scales
from .records import Records, Row
from .steps import Chunk, Cost, now

EXTENDABLE = (
    "methods",
    "weights",
    "grid",
    "kl_scales",
    "images",
    "etas",
    "morl",
    "code_block",
    "code_candidates",
    "rgg_alpha",
)
"""Settings that only add points or pictures: what they decide is in a unit's own name."""
_WITHOUT_EFFECT = ("output", "save_images", "resamples", "reward_folders", "allow_download")


@dataclass(frozen=True)
class Sweep:
    """A sweep ready to run.

    Attributes:
        config: the settings.
        runner: makes the pictures.
        points: in the order of the result.
        scales: what each adapter's reward is divided by before it is weighed, float[m].
        rewards: by the user's names.
        prompts: the prompts, encoded once.
        records: its files.
    """

    config: SweepConfig
    runner: MethodRunner
    points: Sequence[Point]
    scales: Sequence[float]
    rewards: Mapping[str, Reward]
    prompts: PromptTable
    records: Records

    def run(self, state: PartialState) -> list[Row]:
        """Do this process's share of the units that are not done, wait for the others, and write ``samples.csv``.

        Returns:
            A row per point and picture.
        """
        units = [unit for unit in self.units() if not self.records.unit(unit[0].folder, unit[1]).exists()]
        own = units[state.process_index :: state.num_processes]
        images = sum(len(images) for _, images in own)
        with tqdm(total=images, unit="picture", disable=not state.is_main_process, mininterval=1) as bar:
            for point, images in own:
                bar.set_description(point.recipe["sampler"], refresh=False)
                self._unit(point, images)
                bar.update(len(images))
        state.wait_for_everyone()
        rows = [row for point in self.points for row in self._labelled(point)]
        if state.is_main_process:
            self.records.write_samples(rows)
        return rows

    def units(self) -> list[tuple[Point, range]]:
        """Every unit of work once: a point that stands for its recipe, and a run of images."""
        recipes = {point.folder: point for point in self.points}
        return [(point, images) for images in self._chunks() for point in recipes.values()]

    def _chunks(self) -> list[range]:
        batch, images = self.config.batch, self.config.images
        return [range(start, min(start + batch, images)) for start in range(0, images, batch)]

    def _unit(self, point: Point, images: range) -> None:
        chunk, cost = self._chunk(images), Cost()
        device = self.runner.network.device
        start = now(device)
        samples = self.runner.sample(point, chunk, cost)
        with torch.inference_mode():
            pictures = self.runner.network.decode(samples.latents)
        seconds = (now(device) - start - cost.extra_seconds) / len(images)
        pictures = pictures.cpu().clone()
        scores = score(self.rewards, pictures, chunk.prompts)
        kl = [None] * len(images) if samples.kl is None else samples.kl.tolist()
        rows: list[Row] = [
            {
                "image": image,
                **{name: float(scores[name][i]) for name in self.rewards},
                "kl": kl[i],
                "seconds": seconds,
                "calls": cost.calls,
                "kl_calls": cost.extra_calls,
            }
            for i, image in enumerate(images)
        ]
        kept = {image: _png(pictures[i]) for i, image in enumerate(images) if image < self.config.save_images}
        self.records.write_unit(point.folder, images, rows, kept)

    def _chunk(self, images: range) -> Chunk:
        which = torch.tensor([image % len(self.prompts) for image in images])
        prompts, numbers = self.prompts.texts(which), [image // len(self.prompts) for image in images]
        shape = self.runner.network.base.latent_shape
        noise = [
            trajectory_noise(self.config.seed, ("sweep", prompt, number), self.config.steps, shape)
            for prompt, number in zip(prompts, numbers, strict=True)
        ]
        return Chunk(list(images), prompts, numbers, self.prompts.conditioning(which), torch.stack(noise))

    def _labelled(self, point: Point) -> list[Row]:
        names = list(self.config.adapters)
        label = {
            "method": point.method,
            **{f"w_{name}": point.weights[i] if point.weights else None for i, name in enumerate(names)},
            "kl_scale": point.kl_scale,
        }
        found = [row for images in self._chunks() for row in self.records.rows(point.folder, images)]
        prompts = self.prompts.prompts
        return [
            {
                **label,
                "image": row["image"],
                "prompt": prompts[row["image"] % len(prompts)],
                "number": row["image"] // len(prompts),
                **{key: value for key, value in row.items() if key != "image"},
            }
            for row in found
        ]


def _png(image: Tensor) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, format="PNG")
    return content.getvalue()


def prepare(config: SweepConfig, state: PartialState, base: Base | None = None) -> Sweep:
    """Load everything a sweep needs, and claim its folder.

    Args:
        config: the settings.
        state: this process among its peers.
        base: a model that is already loaded, instead of the settings'.

    Raises:
        ValueError: a setting, base, adapter, reward or folder that cannot work, before any picture is made.
    """
    _check(config)
    check_names(list(config.rewards.values()))
    device = torch.device(state.device or "cpu")
    prompts = load_prompts(config.prompts.source, config.prompts.count, config.prompts.seed)
    base = base or load_base(config.base, device, allow_download=config.allow_download)
    network = Network(base, config.guidance_scale)
    adapters = [read_adapter(name, file, base.unet) for name, file in config.adapters.items()]
    morl = {_key(key, config): read_adapter(f"morl {key}", file, base.unet) for key, file in config.morl.items()}
    points = make_points(config, adapters, morl)
    loaded = load_rewards(
        dict.fromkeys(config.rewards.values()), config.reward_folders, device, allow_download=config.allow_download
    )
    steps = base.ddim_steps(config.steps, config.eta)
    rewards = {name: loaded[reward] for name, reward in config.rewards.items()}
    if "rgg" in config.methods:
        check_differentiable("rgg", {name: rewards[name] for name in config.adapters}, base.resolution, prompts[0])
    mixture_adapters = {adapter.digest: adapter for adapter in morl.values()}
    runner = MethodRunner(config, network, steps, adapters, mixture_adapters, rewards)
    records = Records(Path(config.output))
    if state.is_main_process:
        records.open(_fingerprint(config, adapters, prompts))
    state.wait_for_everyone()
    return Sweep(config, runner, points, reward_scales(config, adapters), rewards, _table(base, prompts), records)


def _table(base: Base, prompts: Sequence[str]) -> PromptTable:
    return PromptTable(_Encoder(base), prompts)


@dataclass(frozen=True)
class _Encoder:
    base: Base

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        return self.base.encode(prompts)


def _key(text: str, config: SweepConfig) -> Gates:
    try:
        weights = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"morl {text!r}: give the weights as numbers with commas, like '0.5,0.5'") from error
    return Preference(weights).normalised(list(config.adapters))


def _fingerprint(config: SweepConfig, adapters: Sequence[Adapter], prompts: Sequence[str]) -> dict[str, Any]:
    """Everything that every unit depends on; a file counts by its content."""
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in (*EXTENDABLE, *_WITHOUT_EFFECT)
    }
    settings["adapters"] = {adapter.name: adapter.digest for adapter in adapters}
    settings["prompts"] = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return settings


def _check(config: SweepConfig) -> None:
    check_bounds(config)
    if not math.isfinite(config.guidance_scale):
        raise ValueError(f"guidance_scale is {config.guidance_scale}: it must be a finite number")
    for method in ("code", "rgg"):
        unscored = [name for name in config.adapters if name not in config.rewards]
        if method in config.methods and unscored:
            raise ValueError(
                f"{method} follows the rewards, and there is none named {unscored[0]!r} as that adapter is"
            )
    if not config.adapters or not config.rewards or not config.methods:
        raise ValueError("a sweep needs at least one adapter, one reward and one method")
    reserved = {"method", "kl_scale", "image", "prompt", "number", "kl", "seconds", "calls", "kl_calls", "r(w)"}
    for name in [*config.rewards, *config.adapters]:
        if name in reserved or name.startswith("w_"):
            raise ValueError(f"the name {name!r} is taken by a column of the table: choose another")
    for name in config.etas:
        if name not in config.adapters:
            raise ValueError(f"etas names {name!r}, which is none of the adapters {list(config.adapters)}")
