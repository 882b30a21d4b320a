"""DRaFT: the gradient of the reward and the KL penalty through the sampler, for differentiable rewards.

Clark et al. 2023, arXiv 2309.17400: DRaFT (all steps), DRaFT-K (the last K steps) and DRaFT-LV (the last step, with several
noises), with DPOK's KL penalty (Fan et al. 2023, arXiv 2305.16381) instead of early stopping.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...rewards.protocol import score
from ..adapter_optimizer import AdapterOptimizer, mean_figures
from ..context import RunContext
from ..models.protocol import Conditioning, predict_guided, rows_at_once
from ..policy import gaussian_kl, noise_to_level, step_mean, step_std
from ..randomness import trajectory_noise
from .requirements import check_passes


class Draft:
    """Maximizes ``E[r(x_0, c)] - alpha sum_t KL(p_theta(. | x_t, c) || p_0(. | x_t, c))``, the objective of DPOK.

    A trajectory is a differentiable function of its noise, ``x_prev = mean_theta(x_t) + std_t noise_t``. The gradient goes
    through it, the base of the KL included. It needs no likelihood ratios, value function or replay buffer, and has far
    less noise than a policy gradient. The optimum is the same.

    With ``draft_steps`` K > 0 the gradient goes through the last K steps only, and the KL counts these steps only.
    """

    has_kl_penalty: ClassVar[bool] = True
    needs_reward_gradient: ClassVar[bool] = True

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.optimizer = AdapterOptimizer(context)
        check_passes("draft", "images", context.images_per_iteration, self.optimizer.rows_per_step)

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`. Trajectories are made and differentiated in one go."""
        context, count = self.context, self.context.images_per_iteration
        prompt = context.prompts.shuffled_rows(context.seed, iteration * count, count)
        loss_of = partial(self.loss, iteration, prompt)
        rows = torch.arange(count).split(self.optimizer.rows_per_step)
        return mean_figures([self.optimizer.step(drawn, loss_of) for drawn in rows])

    def loss(self, iteration: int, prompt: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Make trajectories and compute ``alpha KL - reward``, with gradient.

        Args:
            iteration: of the run; decides the noise.
            prompt: rows of the prompt table of all the iteration's trajectories, int64[N].
            rows: numbers of the trajectories to make, int64[B].

        Returns:
            The mean loss, and figures for the log.

        Raises:
            ValueError: a reward returned the wrong number of scores, or one that is not finite.
            RewardFailed: a reward raised an error, or exceeded its time limit.
        """
        context = self.context
        latents, kl = self._trajectories(iteration, prompt, rows)
        copies = context.config.algorithm.draft_noises
        if copies > 1:
            latents, kl = self._with_other_noise(iteration, prompt, rows, latents, kl)
            rows = rows.repeat(copies)
        images, prompts = self._decode(latents), context.prompts.texts(prompt[rows])
        scores = score(context.limited_rewards, images, prompts, gradient=True)
        context.reward_mix.observe({name: context.processes.gather(values.detach()) for name, values in scores.items()})
        reward = context.trained_reward(scores, prompt[rows]).to(kl.device)
        with torch.no_grad():
            figures = {"reward": reward.mean(), "reward_std": reward.std(correction=0)}
            figures |= {f"reward/{name}": values.mean() for name, values in scores.items()}
            figures |= {"diversity": images.std(0, correction=0).mean(), "kl": kl.mean()}
            figures = {name: float(figure) for name, figure in figures.items()}
        return (context.config.algorithm.kl_weight * kl - reward).mean(), figures

    def _trajectories(self, iteration: int, prompt: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents float32[B, C, H, W] and the KL to the base float64[B], with gradient."""
        context, shape = self.context, self.context.model.latent_shape
        keys = [("rollout", iteration, number) for number in rows.tolist()]
        draws = [trajectory_noise(context.seed, key, len(context.steps), shape) for key in keys]
        noise = torch.stack(draws).to(context.device)
        conditioning = context.prompts.conditioning(prompt[rows]).to(context.device)
        latents, kl = noise[:, 0], torch.zeros(len(noise), dtype=torch.float64, device=context.exact_device)
        first = len(context.steps) - (context.config.algorithm.draft_steps or len(context.steps))
        for k in range(len(context.steps)):
            with torch.set_grad_enabled(k >= first):
                latents, step_kl = self._recomputed(partial(self._step, k, conditioning), latents, noise[:, k + 1])
            kl = kl + step_kl if k >= first else kl
        return latents, kl

    def _with_other_noise(
        self, iteration: int, prompt: Tensor, rows: Tensor, latents: Tensor, kl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """DRaFT-LV (section 4.2): noise the clean latents again to the last step's level, and take the last step again."""
        context, last = self.context, len(self.context.steps) - 1
        conditioning = context.prompts.conditioning(prompt[rows]).to(context.device)
        all_latents, all_kl = [latents], [kl]
        for copy in range(1, context.config.algorithm.draft_noises):
            keys = [("draft", iteration, copy, number) for number in rows.tolist()]
            draws = torch.stack([trajectory_noise(context.seed, key, 1, context.model.latent_shape) for key in keys])
            draws = draws.to(context.device)
            index = torch.full((len(rows),), last)
            noisy = noise_to_level(context.steps, index, latents.detach(), draws[:, 0])
            again, again_kl = self._recomputed(partial(self._step, last, conditioning), noisy, draws[:, 1])
            all_latents, all_kl = [*all_latents, again], [*all_kl, again_kl]
        return torch.cat(all_latents), torch.cat(all_kl)

    def _recomputed(self, function: Any, *inputs: Tensor) -> Any:
        """Call a function; with ``recompute`` its activations are computed again in the backward pass."""
        if self.context.config.algorithm.recompute and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents. With ``recompute`` the decoder holds the activations of a few images at a time."""
        if not self.context.config.algorithm.recompute:
            return self.context.model.decode_differentiable(latents)
        parts = latents.split(rows_at_once(self.context.model.latent_shape))
        return torch.cat([self._recomputed(self.context.model.decode_differentiable, part) for part in parts])

    def _step(self, k: int, conditioning: Conditioning, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One denoising step with its KL to the base, float64[B]. A step without noise has no KL."""
        context, steps = self.context, self.context.steps
        index = torch.full((len(latents),), k)
        timesteps = steps.timesteps[index].to(latents.device)
        scale = context.config.sampling.guidance_scale
        predict = partial(predict_guided, context.model, latents, timesteps, conditioning, scale)
        mean, std = step_mean(steps, index, latents, predict(base=False)), step_std(steps, index, latents)
        if float(steps.std[k]) == 0:
            return mean, torch.zeros(len(latents), dtype=torch.float64, device=context.exact_device)
        kl = gaussian_kl(mean, step_mean(steps, index, latents, predict(base=True)), std)
        return mean + std * noise, kl

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
