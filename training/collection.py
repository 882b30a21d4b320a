"""One iteration's data: prompts, rollouts, rewards; joined over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..rewards.protocol import Reward, score
from .base_samples import SamplePool, made_with, probe_noise
from .config import SamplingConfig
from .ddim import DdimSteps
from .models.protocol import Conditioning, TextToImageModel, predict_guided, stack_conditioning
from .processes import Processes
from .randomness import keyed_generator, trajectory_noise
from .rollout import Trajectories, collect

_ENCODE_BATCH = 16


class PromptTable:
    """The run's prompts, each encoded once."""

    def __init__(self, model: TextToImageModel, prompts: Sequence[str]) -> None:
        self.prompts = list(prompts)
        self._rows: list[Conditioning] = []
        for start in range(0, len(self.prompts), _ENCODE_BATCH):
            encoded = model.encode_prompts(self.prompts[start : start + _ENCODE_BATCH])
            self._rows += [_row(encoded, i) for i in range(len(encoded.features))]

    def __len__(self) -> int:
        return len(self.prompts)

    def conditioning(self, index: Tensor) -> Conditioning:
        """One conditioning row per entry of ``index``, int64[B]."""
        return stack_conditioning([self._rows[i] for i in index.tolist()])

    def texts(self, index: Tensor) -> list[str]:
        """The prompts at ``index``, int64[B]."""
        return [self.prompts[i] for i in index.tolist()]

    def turn(self, seed: int, first: int, count: int) -> Tensor:
        """Prompts first, ..., first + count - 1 of an endless list that goes through all of them, reshuffled each time.

        Args:
            seed: of the shuffles.
            first: position in the endless list.
            count: how many.

        Returns:
            Rows of this table, int64[count].
        """
        chosen = []
        for position in range(first, first + count):
            lap, place = divmod(position, len(self))
            chosen.append(torch.randperm(len(self), generator=keyed_generator(seed, "prompts", lap))[place])
        return torch.stack(chosen)


def _row(conditioning: Conditioning, i: int) -> Conditioning:
    return Conditioning(
        {name: tensor[i : i + 1] for name, tensor in conditioning.prompt.items()},
        {name: tensor[i : i + 1] for name, tensor in conditioning.empty.items()},
        conditioning.features[i : i + 1],
    )


@dataclass(frozen=True)
class Collection:
    """Fresh rollouts of all processes, in order of rank.

    Attributes:
        latents: float32[N, T + 1, C, H, W].
        log_prob: float64[N, T], nats.
        kl: to the base, float64[N, T], nats; zeros if not measured.
        prompt: rows of the prompt table, int64[N].
        scores: by reward name, float64[N] each.
        diversity: mean over pixels of the standard deviation over images, 0..0.5.
    """

    latents: Tensor
    log_prob: Tensor
    kl: Tensor
    prompt: Tensor
    scores: dict[str, Tensor]
    diversity: float


class Collector:
    """Samples images from the current policy and scores them."""

    def __init__(
        self,
        model: TextToImageModel,
        steps: DdimSteps,
        table: PromptTable,
        config: SamplingConfig,
        seed: int,
        processes: Processes,
    ) -> None:
        self.model, self.steps, self.table, self.config = model, steps, table, config
        self.seed, self.processes = seed, processes
        self._opened: SamplePool | None = None

    def fresh(self, iteration: int, rewards: Mapping[str, Reward], *, measure_kl: bool) -> Collection:
        """Sample and score one iteration's images; the noise is a function of seed, iteration and trajectory alone."""
        prompt, keys = self._turn(iteration)
        return self._scored(prompt, self.sample(prompt, keys, measure_kl=measure_kl), rewards)

    def of_base(self, iteration: int, rewards: Mapping[str, Reward]) -> Collection:
        """As `fresh`, of the base instead of the trained policy, and with the clean latents only (T = 0)."""
        prompt, keys = self._turn(iteration)

        def make() -> Tensor:
            return self.sample(prompt, keys, measure_kl=False, base=True).latents[:, -1]

        latents = self._pool().latents(iteration, self.processes.rank, make) if self.config.pool else make()
        nothing = torch.zeros(len(prompt), 0, dtype=torch.float64)
        images = torch.cat([self.model.decode(part.to(self.model.device)) for part in latents.split(self.config.batch)])
        return self._scored(prompt, Trajectories(latents[:, None], nothing, nothing, images), rewards)

    def _turn(self, iteration: int) -> tuple[Tensor, list[tuple[str | int, ...]]]:
        """This process's prompts of an iteration and the keys of their noise."""
        own = self.config.samples
        everyone = own * self.processes.count
        first = self.processes.rank * own
        prompt = self.table.turn(self.seed, iteration * everyone, everyone)[first : first + own]
        return prompt, [("rollout", iteration, first + i) for i in range(own)]

    def _pool(self) -> SamplePool:
        if self._opened is None:
            first = self.table.conditioning(torch.tensor([0]))
            conditioning = first.to(self.model.device)
            noise = probe_noise(self.model.latent_shape).to(self.model.device)
            timestep = self.steps.timesteps[:1].to(self.model.device)
            with torch.no_grad():
                probe = predict_guided(self.model, noise, timestep, conditioning, self.config.guidance_scale, base=True)
            told = made_with(self.config, self.seed, self.processes.count, self.table.prompts, first, probe)
            self._opened = SamplePool(Path(self.config.pool), told)
        return self._opened

    def _scored(self, prompt: Tensor, runs: Trajectories, rewards: Mapping[str, Reward]) -> Collection:
        scores = score(rewards, runs.images, self.table.texts(prompt))
        gather = self.processes.gather
        return Collection(
            latents=gather(runs.latents),
            log_prob=gather(runs.log_prob),
            kl=gather(runs.kl),
            prompt=gather(prompt),
            scores={name: gather(values) for name, values in scores.items()},
            diversity=self.processes.mean({"diversity": float(runs.images.std(0, correction=0).mean())})["diversity"],
        )

    def sample(
        self, prompt: Tensor, keys: Sequence[tuple[str | int, ...]], *, measure_kl: bool, base: bool = False
    ) -> Trajectories:
        """Run the sampler for these prompts int64[B], each with the noise of its key, a network batch at a time."""
        noise = torch.stack(
            [trajectory_noise(self.seed, key, len(self.steps), self.model.latent_shape) for key in keys]
        )
        parts = [
            collect(
                self.model,
                self.steps,
                self.table.conditioning(rows),
                noise_rows,
                self.config.guidance_scale,
                measure_kl=measure_kl,
                base=base,
            )
            for rows, noise_rows in zip(prompt.split(self.config.batch), noise.split(self.config.batch), strict=True)
        ]
        return Trajectories(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.kl for part in parts]),
            torch.cat([part.images for part in parts]),
        )
