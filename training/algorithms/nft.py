"""DiffusionNFT: contrastive regression on the policy's own images, without log-probabilities and for any sampler.

Zheng et al. 2025, arXiv 2509.16117.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..adapter_optimizer import AdapterOptimizer, mean_figures
from ..buffer import Transitions, clean_latents
from ..collection import Collector
from ..context import RunContext
from ..randomness import keyed_generator
from ..state import adapter_copy, restore_adapter
from .grpo import bounded_advantages
from .policy_gradient import at_random_levels, predicted, total_reward


def contrastive_loss(
    output: Tensor, old: Tensor, target: Tensor, optimality: Tensor, divisor: Tensor, strength: float
) -> Tensor:
    """The loss of DiffusionNFT (arXiv 2509.16117, eq. 5), in x0 and normalized by its own size (section 3.3).

    ``r || x0+ - x0 ||^2 + (1 - r) || x0- - x0 ||^2`` with ``out+ = (1 - b) out_old + b out`` and
    ``out- = (1 + b) out_old - b out``, each term divided by the mean absolute error of its x0.

    Args:
        output: of the trained network, float[B, C, H, W].
        old: of the network that made the images, without gradient.
        target: the regression target at the noisy latents.
        optimality: r, float[B], 0 to 1.
        divisor: the squared error of the output divided by that of x0, float[B].
        strength: b, above 0.

    Returns:
        float[B].
    """
    terms = []
    for sign in (1, -1):
        guided = old + sign * strength * (output - old)
        error = (guided - target).flatten(1) / divisor.sqrt()[:, None]
        terms.append(error.square().mean(1) / error.detach().abs().mean(1).clamp(min=1e-5))
    return optimality * terms[0] + (1 - optimality) * terms[1]


class Nft:
    """Learns what separates the better from the worse images of a prompt; the sampling policy follows slowly.

    Images come from an older adapter, which moves towards the trained one by ``old = decay old + (1 - decay) trained`` with
    ``decay = min(0.001 i, nft_decay)`` in iteration i.
    """

    has_kl_penalty: ClassVar[bool] = False
    needs_reward_gradient: ClassVar[bool] = False

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.collector = Collector(context, images_per_prompt=context.config.algorithm.group)
        self.optimizer = AdapterOptimizer(context)
        self.old = adapter_copy(context.model)

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`."""
        context, algorithm = self.context, self.context.config.algorithm
        trained = adapter_copy(context.model)
        restore_adapter(context.model, self.old)
        data = self.collector.from_policy(iteration, measure_kl=False)
        restore_adapter(context.model, trained)
        _, figures = total_reward(context, data)
        # Advantages are in standard deviations; the paper's clip(r - mean, -1, 1) / 2 + 1 / 2.
        advantage = bounded_advantages(context, data, algorithm.nft_spread)
        fresh = clean_latents(data, advantage / algorithm.nft_spread / 2 + 0.5)
        rows = []
        for update in range(algorithm.updates):
            noisy = self._noisy_rows(fresh, keyed_generator(context.seed, "policy", iteration, update))
            rows.append(
                self.optimizer.step(torch.arange(len(noisy)), lambda micro, noisy=noisy: self._loss(noisy[micro]))
            )
        self._follow(min(0.001 * iteration, algorithm.nft_decay))
        return figures | mean_figures(rows)

    def _noisy_rows(self, fresh: Transitions, generator: torch.Generator) -> Transitions:
        """One optimizer step's rows: images drawn without repetition as long as they last, each at a level of its own."""
        size, steps = self.optimizer.rows_per_step, self.context.steps
        passes = [torch.randperm(len(fresh), generator=generator) for _ in range(-(-size // len(fresh)))]
        chosen = fresh[torch.cat(passes)[:size]]
        index = torch.randint(len(steps), (size,), generator=generator)
        noise = torch.randn(chosen.latents.shape, generator=generator)
        return at_random_levels(steps, chosen, index, noise, chosen.returns)

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        algorithm, steps = self.context.config.algorithm, self.context.steps
        old = self._old_output(batch)
        output = predicted(self.context, batch)
        optimality = batch.returns.to(output)
        divisor = steps.x0_divisor[batch.step].to(output)
        target = batch.next_latents.to(output)
        loss = contrastive_loss(output, old, target, optimality, divisor, algorithm.nft_strength).mean()
        if algorithm.kl_weight > 0:
            with torch.no_grad():
                base = predicted(self.context, batch, base=True)
            drift = ((output - base).square().flatten(1).mean(1) / divisor).mean()
            loss = loss + algorithm.kl_weight * drift
        return loss, {"drift": float((output.detach() - old).square().mean())}

    @torch.no_grad()
    def _old_output(self, batch: Transitions) -> Tensor:
        trained = adapter_copy(self.context.model)
        restore_adapter(self.context.model, self.old)
        output = predicted(self.context, batch)
        restore_adapter(self.context.model, trained)
        return output

    def _follow(self, decay: float) -> None:
        """Move the sampling adapter towards the trained one."""
        trained = adapter_copy(self.context.model)
        self.old = {name: decay * value + (1 - decay) * trained[name] for name, value in self.old.items()}

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return {**self.optimizer.state_dict(), "old": self.old}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
        self.old = saved["old"]
