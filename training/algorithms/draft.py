"""Reward gradients: the gradient of reward minus KL through the sampler itself, for rewards that have one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...rewards.protocol import Reward
from ..buffer import Transitions
from ..ddim import gaussian_kl, step_mean, step_std
from ..models.protocol import Conditioning, predict_guided
from ..randomness import trajectory_noise
from ..value import ValueFunction
from .policy_gradient import PolicyUpdater


class PathwiseUpdater(PolicyUpdater):
    """Optimiser steps on ``E[r(x_0, c)] - alpha sum_t KL(p_theta(. | x_t, c) || p_0(. | x_t, c))``, DPOK's objective.

    The trajectory is a differentiable function of its noise (``x_prev = mean_theta(x_t) + std_t noise_t``), so the gradient
    goes through it, the base of the KL included, and needs no likelihood ratios, value function or replay: DRaFT (Clark et
    al. 2023, arXiv 2309.17400) through all steps (K = T), with DPOK's KL (Fan et al. 2023, arXiv 2305.16381) instead of
    early stopping. Far less noise than a policy gradient, where the reward is differentiable; the optimum is the same.

    A row of the buffer is a trajectory yet to be made: its prompt, and in ``step`` its number.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    seed: int

    def aim(self, rewards: Mapping[str, Reward], weights: Mapping[str, float], seed: int) -> None:
        """Set what to maximise, ``sum_k weights[k] rewards[k]``, and the seed of the trajectories' noise."""
        self.rewards, self.weights, self.seed = rewards, weights, seed

    def planned(self, iteration: int, prompt: Tensor) -> Transitions:
        """An iteration's trajectories, N of them over all processes.

        Args:
            iteration: which.
            prompt: rows of the prompt table, int64[N].
        """
        count = len(prompt)
        self._iteration = iteration
        nothing = torch.zeros(count, 0)
        numbers = torch.arange(count)
        zeros = torch.zeros(count, dtype=torch.float64)
        return Transitions(nothing, nothing, numbers, prompt, log_prob=zeros, returns=zeros)

    def minibatches(self, buffered: int, fresh: int, seed: int, iteration: int) -> Iterator[Tensor]:  # noqa: ARG002
        """All of the iteration's trajectories once, an optimiser step's at a time."""
        yield from torch.arange(buffered - fresh, buffered).split(self.transitions_per_step)

    def _loss(self, batch: Transitions, value: ValueFunction | None) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        device, shape = self.model.device, self.model.latent_shape
        keys = [("rollout", self._iteration, number) for number in batch.step.tolist()]
        noise = torch.stack([trajectory_noise(self.seed, key, len(self.steps), shape) for key in keys]).to(device)
        conditioning = self.table.conditioning(batch.prompt).to(device)
        latents, kl = noise[:, 0], torch.zeros(len(noise), dtype=torch.float64, device=device)
        for k in range(len(self.steps)):
            step: Any = partial(self._step, k, conditioning)
            if self.algorithm.recompute:
                step = partial(checkpoint, step, use_reentrant=False)
            latents, step_kl = step(latents, noise[:, k + 1])
            kl = kl + step_kl
        images = self.model.decode_differentiable(latents)
        prompts = self.table.texts(batch.prompt)
        scores = {name: reward(images, prompts).double().to(device) for name, reward in self.rewards.items()}
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                raise ValueError(f"reward {name!r} gave a score that is not finite for one of {prompts}")
        reward = torch.stack([self.weights[name] * values for name, values in scores.items()]).sum(0)
        with torch.no_grad():
            figures = {"reward": reward.mean(), "reward_std": reward.std(correction=0)}
            figures |= {f"reward/{name}": values.mean() for name, values in scores.items()}
            figures |= {"diversity": images.std(0, correction=0).mean(), "kl": kl.mean()}
            figures = {name: float(figure) for name, figure in figures.items()}
        return (self.algorithm.kl_weight * kl - reward).mean(), figures

    def _step(self, k: int, conditioning: Conditioning, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One denoising step with its KL to the base, float64[B]; 0 where the step has no noise, and so no KL."""
        index = torch.full((len(latents),), k)
        timesteps = self.steps.timesteps[index].to(latents.device)
        predict = partial(predict_guided, self.model, latents, timesteps, conditioning, self.guidance_scale)
        mean, std = step_mean(self.steps, index, latents, predict(base=False)), step_std(self.steps, index, latents)
        if float(self.steps.std[k]) == 0:
            return mean, torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        kl = gaussian_kl(mean, step_mean(self.steps, index, latents, predict(base=True)), std)
        return mean + std * noise, kl
