"""DRaFT: the gradient of the reward and the KL penalty through the sampler, for differentiable rewards.

Clark et al. 2023, arXiv 2309.17400, through all steps (K = T), with DPOK's KL penalty (Fan et al. 2023, arXiv 2305.16381)
instead of early stopping.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..adapter_optimizer import AdapterOptimizer, check_passes, mean_figures
from ..config import TrainConfig
from ..context import RunContext
from ..ddim import gaussian_kl, step_mean, step_std
from ..models.protocol import Conditioning, predict_guided
from ..randomness import trajectory_noise


class Draft:
    """Maximizes ``E[r(x_0, c)] - alpha sum_t KL(p_theta(. | x_t, c) || p_0(. | x_t, c))``, the objective of DPOK.

    A trajectory is a differentiable function of its noise, ``x_prev = mean_theta(x_t) + std_t noise_t``. The gradient goes
    through it, the base of the KL included. It needs no likelihood ratios, value function or replay buffer, and has far
    less noise than a policy gradient. The optimum is the same.
    """

    has_kl_penalty: ClassVar[bool] = True
    needs_reward_gradient: ClassVar[bool] = True

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.optimizer = AdapterOptimizer(context)
        check_passes("draft", "images", context.images_per_iteration, self.optimizer.rows_per_step)

    @staticmethod
    def check(config: TrainConfig) -> None:
        """Refuse gradient checkpointing inside the network.

        Raises:
            ValueError: it is on.
        """
        if config.base.gradient_checkpointing:
            raise ValueError(
                "base.gradient_checkpointing is on, which runs the network again with the adapter on where it was off: "
                "draft saves memory by itself (algorithm.recompute)"
            )

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
            ValueError: a reward gave a score that is not finite.
        """
        context, weights = self.context, self.context.config.rewards
        latents, kl = self._trajectories(iteration, prompt, rows)
        images, prompts = context.model.decode_differentiable(latents), context.prompts.texts(prompt[rows])
        scores = {name: reward(images, prompts).double().to(kl.device) for name, reward in context.rewards.items()}
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                raise ValueError(f"reward {name!r} gave a score that is not finite for one of {prompts}")
        reward = torch.stack([weights[name] * values for name, values in scores.items()]).sum(0)
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
        latents, kl = noise[:, 0], torch.zeros(len(noise), dtype=torch.float64, device=context.device)
        for k in range(len(context.steps)):
            step: Any = partial(self._step, k, conditioning)
            if context.config.algorithm.recompute:
                step = partial(checkpoint, step, use_reentrant=False)
            latents, step_kl = step(latents, noise[:, k + 1])
            kl = kl + step_kl
        return latents, kl

    def _step(self, k: int, conditioning: Conditioning, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One denoising step with its KL to the base, float64[B]. A step without noise has no KL."""
        context, steps = self.context, self.context.steps
        index = torch.full((len(latents),), k)
        timesteps = steps.timesteps[index].to(latents.device)
        scale = context.config.sampling.guidance_scale
        predict = partial(predict_guided, context.model, latents, timesteps, conditioning, scale)
        mean, std = step_mean(steps, index, latents, predict(base=False)), step_std(steps, index, latents)
        if float(steps.std[k]) == 0:
            return mean, torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        kl = gaussian_kl(mean, step_mean(steps, index, latents, predict(base=True)), std)
        return mean + std * noise, kl

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
