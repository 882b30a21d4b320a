"""Losses, returns, statistics, buffer: hand-known values and gradients."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.training.advantages import PromptStatistics
from diffusion_blend.training.buffer import Transitions, join
from diffusion_blend.training.objectives import clip_fraction, importance_ratio, policy_loss, returns_to_go
from diffusion_blend.training.randomness import keyed_generator
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("ratio", "advantage", "hard", "ppo"),
    [
        # inside the range both are -A ratio, with gradient -A
        (1.0, 2.0, (-2.0, -2.0), (-2.0, -2.0)),
        (1.1, -1.0, (1.1, 1.0), (1.1, 1.0)),
        # moved too far the good way: no more gradient in either
        (1.5, 2.0, (-2.4, 0.0), (-2.4, 0.0)),
        (0.5, -1.0, (0.8, 0.0), (0.8, 0.0)),
        # moved the wrong way: ppo still pulls back, the hard clip lets it be
        (0.5, 2.0, (-1.6, 0.0), (-1.0, -2.0)),
        (1.5, -1.0, (1.2, 0.0), (1.5, 1.0)),
    ],
)
def test_clipped_losses(ratio: float, advantage: float, hard: tuple[float, float], ppo: tuple[float, float]) -> None:
    for clip, (value, gradient) in (("hard", hard), ("ppo", ppo)):
        r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
        loss = policy_loss(r, torch.tensor([advantage], dtype=torch.float64), 0.2, clip)  # pyright: ignore
        (slope,) = torch.autograd.grad(loss.sum(), r)
        assert float(loss.detach()) == pytest.approx(value)
        assert float(slope) == pytest.approx(gradient)


def test_the_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    log_prob = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    ratio = importance_ratio(log_prob, log_prob.detach())
    (slope,) = torch.autograd.grad(policy_loss(ratio, torch.tensor([1.7]), 0.2, "hard").sum(), log_prob)
    assert float(ratio.detach()) == 1.0
    assert float(slope) == pytest.approx(-1.7)


def test_no_gradient_flows_into_the_advantage() -> None:
    advantage = torch.tensor([2.0], requires_grad=True)
    assert not policy_loss(torch.tensor([1.0]), advantage, 0.2, "ppo").requires_grad


def test_clip_range_must_be_positive() -> None:
    with pytest.raises(ValueError, match="clip range 0"):
        policy_loss(torch.tensor([1.0]), torch.tensor([1.0]), 0.0, "ppo")


def test_clip_fraction() -> None:
    assert float(clip_fraction(torch.tensor([1.0, 1.19, 1.21, 0.7]), 0.2)) == 0.5


def test_returns_count_the_kl_of_later_steps_only() -> None:
    reward = torch.tensor([10.0], dtype=torch.float64)
    kl = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(returns_to_go(reward, kl, 0.5), torch.tensor([[7.0, 8.0, 10.0]], dtype=torch.float64))
    torch.testing.assert_close(returns_to_go(reward, 0 * kl, 0.5), torch.full((1, 3), 10.0, dtype=torch.float64))


def test_prompt_statistics_use_the_prompts_own_rewards_once_there_are_enough() -> None:
    statistics = PromptStatistics(window=3, minimum=2)
    rewards = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    advantages = statistics.update(["cat", "cat", "dog"], rewards)
    # cat: mean 2, std 1; dog has one reward: the batch's mean 14/3 and std
    assert advantages[:2].tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)
    assert float(advantages[2]) == pytest.approx(float((10 - rewards.mean()) / rewards.std(correction=0)), abs=1e-5)
    statistics.update(["cat", "cat"], torch.tensor([5.0, 7.0], dtype=torch.float64))
    assert statistics.rewards == {"cat": [3.0, 5.0, 7.0], "dog": [10.0]}


def transitions(start: int, count: int) -> Transitions:
    column = torch.arange(start, start + count)
    picture = column.float().view(-1, 1, 1, 1)
    return Transitions(
        picture, picture + 0.5, column, column, column.double(), column.double(), picture[:, :0], column.double()
    )


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=6), capacity=st.integers(1, 12))
def test_the_buffer_keeps_the_newest(counts: list[int], capacity: int) -> None:
    buffer, start = None, 0
    for count in counts:
        buffer = join(buffer, transitions(start, count), capacity)
        start += count
    assert buffer is not None
    assert buffer.step.tolist() == list(range(max(0, start - capacity), start))
    assert torch.equal(buffer.latents.flatten() + 0.5, buffer.next_latents.flatten())


def test_buffer_capacity() -> None:
    with pytest.raises(ValueError, match="capacity 0"):
        join(None, transitions(0, 2), 0)


def test_keyed_generators_depend_on_seed_and_key_alone() -> None:
    first = torch.randn(3, generator=keyed_generator(1, "rollout", 0, 5))
    torch.randn(7)
    assert torch.equal(first, torch.randn(3, generator=keyed_generator(1, "rollout", 0, 5)))
    for other in [
        keyed_generator(2, "rollout", 0, 5),
        keyed_generator(1, "rollout", 0, 6),
        keyed_generator(1, "x", 0, 5),
    ]:
        assert not torch.equal(first, torch.randn(3, generator=other))
