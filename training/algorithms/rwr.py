"""RWR: reward-weighted regression, score matching on the base's own samples weighted by their reward.

Peters and Schaal 2007; for diffusion models Lee et al. 2023, arXiv 2302.12192.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..adapter_optimizer import AdapterOptimizer, mean_figures
from ..buffer import Transitions, clean_latents, join
from ..collection import Collection, Collector
from ..context import RunContext
from ..policy import PolicySteps
from ..randomness import keyed_generator
from ..stacking import StackedPrompts
from .policy_gradient import at_random_levels, buffer_state, predicted, restored_buffer, total_reward


def tilt_weights(reward: Tensor, prompt: Tensor, kl_weight: float) -> Tensor:
    """Importance weights that turn samples of the base into samples of the target of fine-tuning.

    ``w_j = exp(r_j / alpha) / mean_{i: prompt_i = prompt_j} exp(r_i / alpha)``: self-normalised importance weights of
    ``p(x | c) exp(r(x) / alpha) / Z(c)``, the optimum of Diffusion Blend's eq. 4 (arXiv 2505.18547); as in
    reward-weighted regression (Peters and Schaal 2007; for diffusion models Lee et al. 2023, arXiv 2302.12192).

    Args:
        reward: float64[N].
        prompt: the prompt of each row, int64[N].
        kl_weight: alpha, reward units per nat, above 0.

    Returns:
        Weights, float64[N], mean 1 over each prompt's rows. The only row of a prompt has weight 1.
    """
    logits = reward.double() / kl_weight
    groups, which, counts = prompt.unique(return_inverse=True, return_counts=True)
    # The largest logit of each prompt is subtracted first, because exp would overflow.
    largest = torch.full((len(groups),), -torch.inf, dtype=torch.float64).scatter_reduce(0, which, logits, "amax")
    shifted = (logits - largest[which]).exp()
    means = torch.zeros(len(groups), dtype=torch.float64).scatter_add(0, which, shifted) / counts
    return shifted / means[which]


def scaled_scores(context: RunContext, data: Collection) -> Tensor:
    """The terms of the trained reward, each times its weight, float64[N, m]."""
    mix, terms = context.reward_mix, context.reward_mix.terms(data.scores)
    return torch.stack([weight * terms[name] for name, weight in mix.weights.items()], dim=1)


def partners_of_the_same_prompt(prompt: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw, for each given row, a row of the same prompt with equal probabilities.

    Args:
        prompt: the prompt of each row of the buffer, int64[N].
        rows: rows of the buffer, int64[B].
        generator: of the draws.

    Returns:
        Rows of the buffer, int64[B].
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


def min_snr_weight(steps: PolicySteps, index: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights of the squared error of the network's output.

    ``min(snr, gamma)`` weights the error of x_0, with ``snr = signal^2 / noise^2``. The error of epsilon has this weight
    divided by snr, the error of v divided by snr + 1 (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    Args:
        steps: the sampler's coefficients.
        index: the step of each row, int64[B].
        gamma: the largest snr that counts.

    Returns:
        float64[B].
    """
    return steps.snr[index].clamp(max=gamma) / steps.x0_divisor[index]


class Rwr:
    """Weighted score matching on samples of the base.

    ``loss = E_w[e(x_t, eps)] + E[|| eps_theta - eps_base ||^2 - e(x_t, eps)]``, ``e = b_t || eps - eps_theta(x_t, t) ||^2 / n``.

    One half of a batch is drawn in proportion to the weights, so that no work is spent on rows of weight near 0. The other
    half is drawn evenly, in pairs of the same prompt, level and noise: it subtracts the part of the gradient that does not
    depend on the reward (a control variate). Plain regression would also learn the sampler's own error at few steps. The
    minimum is ``eps_w + (eps_base - eps_1) / E[w | x_t]`` with eps_w and eps_1 the weighted and the even mean of eps at x_t.
    Where all weights are 1 the minimum is eps_base, and the loss is 0 there.

    Noise and levels are fresh at every update. Min-SNR weights ``b_t`` keep the last, nearly clean steps, whose noise cannot
    be predicted, from dominating the gradient.
    """

    has_kl_penalty: ClassVar[bool] = True
    needs_reward_gradient: ClassVar[bool] = False

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.collector = Collector(context)
        self.optimizer = AdapterOptimizer(context)
        self.buffer: Transitions | None = None

    def iterate(self, iteration: int) -> dict[str, float]:
        """See `protocol.Algorithm.iterate`."""
        context, settings = self.context, self.context.config.algorithm
        data = self.collector.from_base(iteration)
        reward, figures = total_reward(context, data)
        returns = scaled_scores(context, data) if settings.adapter_per_reward else reward
        fresh = clean_latents(replace(data, prompt=context.prompts.plain(data.prompt)), returns)
        self.buffer = join(self.buffer, fresh, settings.buffer * context.processes.count)
        rows, share = [], 0.0
        for update in range(settings.updates):
            generator = keyed_generator(context.seed, "policy", iteration, update)
            prompt, weights = self._prompts_and_weights(self.buffer, iteration * settings.updates + update)
            noisy = self._noisy_rows(self.buffer, prompt, weights, generator)
            rows.append(
                self.optimizer.step(torch.arange(len(noisy)), lambda micro, noisy=noisy: self._loss(noisy[micro]))
            )
            share = sum(map(effective_share, weights)) / len(weights)
        return figures | mean_figures(rows) | {"effective_share": share}

    @property
    def _each(self) -> int:
        """Rows that share prompt, level and noise."""
        return 2 if self.context.config.algorithm.control_variate else 1

    @property
    def _draws(self) -> int:
        return -(-self.optimizer.rows_per_step // self._each)

    def _prompts_and_weights(self, buffer: Transitions, step: int) -> tuple[Tensor, Tensor]:
        """An optimizer step's preferences and the weights of the buffer's rows under each.

        Args:
            buffer: N rows.
            step: which optimizer step of the run.

        Returns:
            For each draw the rows' prompts, int64[D, N], and the rows' weights, float64[D, N]. D is 1 without preferences.
        """
        alpha, prompts = self.context.config.algorithm.kl_weight, self.context.prompts
        if not isinstance(prompts, StackedPrompts):
            return buffer.prompt[None], tilt_weights(buffer.returns, buffer.prompt, alpha)[None]
        numbers = step * self._draws + torch.arange(self._draws)
        coded = torch.stack([prompts.with_drawn(buffer.prompt, number) for number in numbers])
        preferences = prompts.preferences(coded[:, 0])
        weights = [tilt_weights(buffer.returns @ w, buffer.prompt, alpha) for w in preferences]
        return coded, torch.stack(weights)

    def _noisy_rows(
        self, buffer: Transitions, prompt: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Transitions:
        """Draw one optimizer step's rows, with noise added: ``returns`` is 1 for weighted rows, -1 for even ones."""
        size, steps = self.optimizer.rows_per_step, self.context.steps
        each, draws = self._each, self._draws
        number = draws if len(weights) == 1 else 1  # of draws by each row of weights
        rows = torch.multinomial(weights, number, replacement=True, generator=generator).flatten()
        sign = torch.ones(size, dtype=torch.float64)
        if each == 2:
            # [draws] -> [2 draws], alternating: every process and network batch has as many of both
            partners = partners_of_the_same_prompt(buffer.prompt, rows, generator)
            rows = torch.stack([rows, partners], 1).flatten()
            sign[1::2] = -1
        chosen = buffer[rows[:size]]
        which = torch.arange(draws).repeat_interleave(each)[:size] % len(weights)
        index = torch.randint(len(steps), (draws,), generator=generator).repeat_interleave(each)[:size]
        noise = torch.randn(draws, *chosen.latents.shape[1:], generator=generator).repeat_interleave(each, 0)[:size]
        drawn = replace(chosen, prompt=prompt[which, rows[:size]])
        return at_random_levels(steps, drawn, index, noise, sign)

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        even = batch.returns < 0
        anchor = self._predict(batch[even.nonzero()[:, 0]], base=True) if even.any() else None
        output = self._predict(batch, base=False)
        error = (output - batch.next_latents.to(output)).square().flatten(1).mean(1)
        if anchor is not None:
            error = torch.where(even.to(error.device), -error, error)
            drift = torch.zeros_like(error)
            drift[even] = (output[even] - anchor).square().flatten(1).mean(1)
            error = 2 * (error + drift)  # each of the two means is over half of the rows
        return (error * min_snr_weight(self.context.steps, batch.step).to(error)).mean(), {}

    def _predict(self, batch: Transitions, *, base: bool) -> Tensor:
        with torch.set_grad_enabled(not base):
            return predicted(self.context, batch, base=base)

    def state_dict(self) -> dict[str, Any]:
        """See `protocol.Algorithm.state_dict`."""
        return {**self.optimizer.state_dict(), "buffer": buffer_state(self.buffer)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.optimizer.load_state_dict(saved)
        self.buffer = restored_buffer(saved["buffer"])
