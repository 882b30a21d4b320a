"""Reward-weighted regression: score matching on the base's own samples, weighted by their reward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..buffer import Transitions
from ..ddim import DdimSteps, noise_to_level, training_target
from ..models.protocol import predict_guided
from ..randomness import keyed_generator
from ..value import ValueFunction
from .policy_gradient import PolicyUpdater


def tilt_weights(reward: Tensor, prompt: Tensor, kl_weight: float) -> Tensor:
    """Weights that turn samples of the base into samples of the distribution that fine-tuning aims at.

    ``w_j = exp(r_j / alpha) / mean_{i: prompt_i = prompt_j} exp(r_i / alpha)``: self-normalised importance weights of
    ``p(x | c) exp(r(x) / alpha) / Z(c)``, the optimum of Diffusion Blend's eq. 4 (arXiv 2505.18547); as in
    reward-weighted regression (Peters and Schaal 2007; for diffusion models Lee et al. 2023, arXiv 2302.12192).

    Args:
        reward: float64[N].
        prompt: which prompt each belongs to, int64[N].
        kl_weight: alpha, reward units per nat, above 0.

    Returns:
        Weights, float64[N], mean 1 over each prompt's rows. A prompt with one row has weight 1: nothing to prefer.
    """
    logits = reward.double() / kl_weight
    groups, which, counts = prompt.unique(return_inverse=True, return_counts=True)
    # The largest of each prompt is taken off first: exp would overflow.
    largest = torch.full((len(groups),), -torch.inf, dtype=torch.float64).scatter_reduce(0, which, logits, "amax")
    lifted = (logits - largest[which]).exp()
    means = torch.zeros(len(groups), dtype=torch.float64).scatter_add(0, which, lifted) / counts
    return lifted / means[which]


def any_of_the_same(prompt: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """For each of ``rows`` int64[B], a row drawn evenly from those of its prompt, int64[B].

    Args:
        prompt: which prompt each row of the buffer belongs to, int64[N].
        rows: rows of the buffer.
        generator: of the draws.
    """
    order = prompt.argsort(stable=True)
    _, which, counts = prompt.unique(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    group = which[rows]
    place = torch.rand(len(rows), generator=generator, dtype=torch.float64) * counts[group]
    return order[starts[group] + place.long()]


def effective_share(weights: Tensor) -> float:
    """Effective sample size of weights float64[N] as a share of N: ``(sum w)^2 / (N sum w^2)``; 1 when all are equal."""
    return float(weights.sum().square() / (len(weights) * weights.square().sum()))


def min_snr_weight(steps: DdimSteps, index: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight of each step's squared error in the network's own parametrisation, float64[B].

    ``min(snr, gamma)`` on the error of x_0, ``snr = abar / (1 - abar)``, brought over to what the network puts out: divided by
    snr for epsilon and by snr + 1 for v (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    Args:
        steps: the sampler's coefficients.
        index: which step each row is at, int64[B].
        gamma: the cap.
    """
    alpha_bar = steps.alpha_bar[index]
    snr = alpha_bar / (1 - alpha_bar)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[steps.prediction_type]
    return snr.clamp(max=gamma) / divisor


class RegressionUpdater(PolicyUpdater):
    """Optimiser steps of weighted score matching; the buffer's rows are clean latents with their rewards.

    ``loss = E_w[e(x_t, eps)] + E[|| eps_theta - eps_base ||^2 - e(x_t, eps)]``, ``e = b_t || eps - eps_theta(x_t, t) ||^2 / n``.

    One half of a batch is drawn in proportion to the weights (no work is spent on rows of weight near 0), the other
    evenly, in pairs of the same prompt, level and noise: where noise prevails both give nearly the same gradient, and what
    is left is the reward's. Noise and levels are fresh every time. Min-SNR weights ``b_t = min(snr_t, 5) / snr_t`` (Hang et
    al. 2023, arXiv 2303.09556): at the last, nearly clean steps the noise cannot be predicted, and without them that alone
    would be most of the gradient. The even half takes off what plain regression learns from samples of a few steps
    whatever their reward, their difference from the base's own scores: the minimum is
    ``eps_w + (eps_base - eps_1) / E[w | x_t]`` with eps_w and eps_1 the weighted and the even mean of eps at x_t. Where all
    weights are 1 that is eps_base, and the loss is 0 there.
    """

    def minibatches(self, buffered: int, fresh: int, seed: int, iteration: int) -> Iterator[Tensor]:  # noqa: ARG002
        for update in range(self.algorithm.updates):
            self._generator = keyed_generator(seed, "policy", iteration, update)
            yield torch.empty(0, dtype=torch.int64)  # which rows depends on their rewards: chosen in `step`

    def step(self, buffer: Transitions, rows: Tensor, value: ValueFunction | None) -> dict[str, float]:
        """One optimiser step; returns the loss, the effective share of the samples, and the gradient's norm."""
        weights = tilt_weights(buffer.returns, buffer.prompt, self.algorithm.kl_weight)
        size, generator = self.transitions_per_step, self._generator
        each = 2 if self.algorithm.take_off_base_error else 1  # rows that share prompt, level and noise
        draws = -(-size // each)
        rows = torch.multinomial(weights, draws, replacement=True, generator=generator)
        sign = torch.ones(size, dtype=torch.float64)
        if each == 2:
            # [draws] -> [2 draws], alternating: every process and network batch has as many of both
            rows = torch.stack([rows, any_of_the_same(buffer.prompt, rows, generator)], 1).flatten()
            sign[1::2] = -1
        chosen = buffer[rows[:size]]
        index = torch.randint(len(self.steps), (draws,), generator=generator).repeat_interleave(each)[:size]
        noise = torch.randn(draws, *chosen.latents.shape[1:], generator=generator).repeat_interleave(each, 0)[:size]
        noisy = Transitions(
            latents=noise_to_level(self.steps, index, chosen.latents, noise),
            next_latents=training_target(self.steps, index, chosen.latents, noise),
            step=index,
            prompt=chosen.prompt,
            log_prob=chosen.log_prob,
            returns=sign,
        )
        figures = super().step(noisy, torch.arange(size), value)
        return {**figures, "effective_share": effective_share(weights)}

    def _loss(self, batch: Transitions, value: ValueFunction | None) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        even = batch.returns < 0
        anchor = self._predict(batch[even.nonzero()[:, 0]], base=True) if even.any() else None
        output = self._predict(batch, base=False)
        error = (output - batch.next_latents.to(output)).square().flatten(1).mean(1)
        if anchor is not None:
            error = torch.where(even.to(error.device), -error, error)
            drift = torch.zeros_like(error)
            drift[even] = (output[even] - anchor).square().flatten(1).mean(1)
            error = 2 * (error + drift)  # half of the rows stand for each of the two means
        return (error * min_snr_weight(self.steps, batch.step).to(error)).mean(), {}

    def _predict(self, batch: Transitions, *, base: bool) -> Tensor:
        device = self.model.device
        conditioning = self.table.conditioning(batch.prompt).to(device)
        timesteps = self.steps.timesteps[batch.step].to(device)
        with torch.set_grad_enabled(not base):
            return predict_guided(
                self.model, batch.latents.to(device), timesteps, conditioning, self.guidance_scale, base=base
            )
