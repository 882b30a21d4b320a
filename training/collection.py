"""The images of one iteration: sampled, scored and joined over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..rewards.protocol import score
from .base_samples import BaseSamples, fingerprint, probe_noise
from .context import RunContext
from .models.protocol import predict_guided
from .policy import PolicySteps
from .randomness import trajectory_noise
from .rollout import Trajectories, collect


@dataclass(frozen=True)
class Collection:
    """Scored trajectories of all processes, in order of rank.

    Attributes:
        latents: float32[N, T + 1, C, H, W].
        log_prob: float64[N, T], nats.
        kl: to the base, float64[N, T], nats; zeros where it was not measured.
        base_mean: of each step under the base, float32[N, T, C, H, W]; T is 0 where it was not measured.
        prompt: rows of the prompt table, int64[N].
        scores: by reward name, float64[N] each.
        diversity: mean over pixels of the standard deviation over images, 0..0.5.
    """

    latents: Tensor
    log_prob: Tensor
    kl: Tensor
    base_mean: Tensor
    prompt: Tensor
    scores: dict[str, Tensor]
    diversity: float


class Collector:
    """Samples images from the policy or the base and scores them."""

    def __init__(self, context: RunContext, *, images_per_prompt: int = 1) -> None:
        """Sample for a run.

        Args:
            context: the run.
            images_per_prompt: images of one prompt side by side in an iteration.
        """
        self.context, self.images_per_prompt = context, images_per_prompt
        self._base_samples: BaseSamples | None = None

    def from_policy(self, iteration: int, *, measure_kl: bool) -> Collection:
        """Sample one iteration's images from the current policy and score them.

        The noise is a function of seed, iteration and trajectory alone.

        Args:
            iteration: which.
            measure_kl: also measure every step's KL to the base, which doubles the network calls.
        """
        prompt, keys = self._prompts_and_keys(iteration)
        steps = self.context.sampling_steps(iteration)
        return self._score(prompt, self.sample(prompt, keys, measure_kl=measure_kl, steps=steps))

    def from_base(self, iteration: int) -> Collection:
        """Sample one iteration's images from the base, or read them from ``sampling.pool``; only clean latents (T = 0)."""
        prompt, keys = self._prompts_and_keys(iteration)

        def make() -> Tensor:
            return self.sample(prompt, keys, measure_kl=False, base=True).latents[:, -1]

        context, sampling = self.context, self.context.config.sampling
        latents = self._cached(iteration, make) if sampling.pool else make()
        empty = torch.zeros(len(prompt), 0, dtype=torch.float64)
        parts = latents.split(sampling.batch)
        images = torch.cat([context.model.decode(part.to(context.device)) for part in parts])
        return self._score(prompt, Trajectories(latents[:, None], empty, empty, latents[:, None][:, :0], images))

    def sample(
        self,
        prompt: Tensor,
        keys: Sequence[tuple[str | int, ...]],
        *,
        measure_kl: bool,
        base: bool = False,
        steps: PolicySteps | None = None,
    ) -> Trajectories:
        """Run the sampler, one network batch at a time.

        Args:
            prompt: rows of the prompt table, int64[B].
            keys: of each trajectory's noise.
            measure_kl: also measure every step's KL to the base.
            base: sample from the base instead of the policy.
            steps: the sampler's coefficients; None takes the run's.
        """
        context, sampling = self.context, self.context.config.sampling
        shape = context.model.latent_shape
        noise = torch.stack([trajectory_noise(context.seed, key, len(context.steps), shape) for key in keys])
        parts: list[Trajectories] = []
        for rows, noise_rows in zip(prompt.split(sampling.batch), noise.split(sampling.batch), strict=True):
            part = collect(
                context.model,
                steps or context.steps,
                context.prompts.conditioning(rows),
                noise_rows,
                sampling.guidance_scale,
                measure_kl=measure_kl,
                base=base,
            )
            parts.append(part)
            context.progress.step("sampling", len(parts) * sampling.batch, len(prompt))
        return Trajectories(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.kl for part in parts]),
            torch.cat([part.base_mean for part in parts]),
            torch.cat([part.images for part in parts]),
        )

    def _prompts_and_keys(self, iteration: int) -> tuple[Tensor, list[tuple[str | int, ...]]]:
        """This process's prompts of an iteration, and the keys of their noise."""
        context, own = self.context, self.context.config.sampling.samples
        everyone, first = context.images_per_iteration, context.processes.rank * own
        groups = everyone // self.images_per_prompt
        prompt = context.prompts.shuffled_rows(context.seed, iteration * groups, groups)
        prompt = prompt.repeat_interleave(self.images_per_prompt)[first : first + own]
        return prompt, [("rollout", iteration, first + i) for i in range(own)]

    def _cached(self, iteration: int, make: Callable[[], Tensor]) -> Tensor:
        """The clean latents of ``sampling.pool``; the missing ones are made."""
        cache, processes = self._cache(), self.context.processes
        found = cache.holds(iteration, processes.rank)
        if processes.mean({"found": float(found)})["found"] < 1 and found:
            make()  # with the others, because a base that is split over the processes runs on all of them or none
        return cache.latents(iteration, processes.rank, make)

    def _cache(self) -> BaseSamples:
        if self._base_samples is None:
            context, sampling = self.context, self.context.config.sampling
            first = context.prompts.encoded(torch.tensor([0]))
            noise = probe_noise(context.model.latent_shape).to(context.device)
            timestep = context.steps.timesteps[:1].to(context.device)
            with torch.no_grad():
                probe = predict_guided(
                    context.model, noise, timestep, first.to(context.device), sampling.guidance_scale, base=True
                )
            made_with = fingerprint(
                sampling, context.seed, context.processes.count, context.prompts.prompts, first, probe
            )
            self._base_samples = BaseSamples(Path(sampling.pool), made_with)
        return self._base_samples

    def _score(self, prompt: Tensor, runs: Trajectories) -> Collection:
        context = self.context
        scores = score(context.limited_rewards, runs.images, context.prompts.texts(prompt))
        gather = context.processes.gather
        own = {"diversity": float(runs.images.std(0, correction=0).mean())}
        latents, measured = gather(runs.latents), runs.base_mean.shape[1] > 0
        return Collection(
            latents=latents,
            log_prob=gather(runs.log_prob),
            kl=gather(runs.kl),
            base_mean=gather(runs.base_mean) if measured else latents[:, :0],
            prompt=gather(prompt),
            scores={name: gather(values) for name, values in scores.items()},
            diversity=context.processes.mean(own)["diversity"],
        )
