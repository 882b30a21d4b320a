"""The exact study: in a mixture whose every tilt is known, the errors of the blend are measured, not estimated.

`jensen_gap`, `weak_error` and `kl_scale` each return the rows of one table; all is float64 and seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .ancestral import Denoise, sample
from .distance import sliced_wasserstein
from .exact_world import World, control, mean_reward_gradient, variation
from .mixture import GaussianMixture, QuadraticReward, ring, ring_rewards, weighted_reward

Row = dict[str, Any]

ALPHAS = (4.0, 2.0, 1.0, 0.5, 0.25)
WEIGHTS = (0.25, 0.5, 0.75)
PAIRS = (("right", "up"), ("right", "centre"))
STEPS = 50


def pick(names: Sequence[str]) -> list[QuadraticReward]:
    """The ring's rewards of these names."""
    known = {reward.name: reward for reward in ring_rewards()}
    return [known[name] for name in names]


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + purpose)


def _run(denoise: Denoise, count: int, steps: int, seed: int) -> Tensor:
    """Sample with the start and the noise that every method of this seed shares."""
    start = torch.randn((count, 2), generator=_generator(seed, 1), dtype=torch.float64)
    return sample(denoise, start, steps, _generator(seed, 2))


def _exact(mixture: GaussianMixture) -> Denoise:
    return lambda x, sigma, _: mixture.denoised(x, sigma)


def drift_errors(world: World, weights: list[float], seed: int, count: int = 4000) -> list[Row]:
    """The blend's error and Lemma 2's quantities at 16 noise levels.

    For each sigma, over points of the exact solution's noised distribution: ``blend`` the relative error of the blended
    control, ``|sum_i w_i u_i - u_w| / |u_w|`` (root mean squares); ``jensen`` the relative gap of eq. 8 for r(w),
    ``|u_w - grad E[r(w)/alpha | x]| / |u_w|``; and, over points of the base's noised distribution as in the lemma,
    ``variation`` the mean of L_{t,2} for r(w).
    """
    reward = weighted_reward(world.rewards, weights)
    solution, adapters = world.exact(weights), world.adapters()
    generator = _generator(seed, 3)
    rows: list[Row] = []
    for sigma in torch.logspace(math.log10(0.05), math.log10(10.0), 16, dtype=torch.float64).tolist():
        x = solution.diffused(sigma).sample(count, generator)
        exact = control(solution, world.base, x, sigma)
        blended = sum(
            (w * control(a, world.base, x, sigma) for w, a in zip(weights, adapters, strict=True)), torch.zeros_like(x)
        )
        exchanged = mean_reward_gradient(world.base, reward, world.alpha, x, sigma)
        size = _rms(exact)
        rows.append(
            {
                "sigma": sigma,
                "blend": _rms(blended - exact) / size,
                "jensen": _rms(exchanged - exact) / size,
                "variation": float(
                    variation(
                        world.base, reward, world.alpha, world.base.diffused(sigma).sample(count, generator), sigma
                    ).mean()
                ),
            }
        )
    return rows


def _rms(vectors: Tensor) -> float:
    return float(vectors.square().sum(-1).mean().sqrt())


def jensen_gap(seed: int, count: int) -> list[Row]:
    """Blend against the exact solution over reward pairs, alpha and weights.

    Distances are sliced 2-Wasserstein to fresh samples of the exact tilted distribution; ``floor`` is that of a second
    set of exact samples. The drift's columns are the largest over the noise levels of `drift_errors`.
    """
    rows: list[Row] = []
    base_run = _run(_exact(ring()), count, STEPS, seed)
    for pair in PAIRS:
        for alpha in ALPHAS:
            world = World(ring(), pick(pair), alpha)
            for weight in WEIGHTS:
                weights = [weight, 1 - weight]
                solution, reward = world.exact(weights), weighted_reward(world.rewards, weights)
                target = solution.sample(count, _generator(seed, 4))
                blend = _run(world.blend(weights, 1.0, STEPS), count, STEPS, seed)
                drift = drift_errors(world, weights, seed)
                exact = float(solution.mean_reward(reward))
                plain = float(world.base.mean_reward(reward))
                rows.append(
                    {
                        "rewards": "/".join(pair),
                        "alpha": alpha,
                        "w": weight,
                        "L_t2": max(row["variation"] for row in drift),
                        "jensen gap": max(row["jensen"] for row in drift),
                        "blend gap": max(row["blend"] for row in drift),
                        "SW base": sliced_wasserstein(base_run, target),
                        "SW blend": sliced_wasserstein(blend, target),
                        "SW exact": sliced_wasserstein(_run(_exact(solution), count, STEPS, seed), target),
                        "floor": sliced_wasserstein(solution.sample(count, _generator(seed, 5)), target),
                        "gain kept": (float(reward(blend).mean()) - plain) / (exact - plain),
                    }
                )
    return rows


def weak_error(seed: int, count: int, repeats: int = 8, steps: Sequence[int] = (8, 16, 32, 64, 128)) -> list[Row]:
    """Stochastic against blend at equal steps and equal noise, for growing numbers of steps.

    ``error`` is the root mean square, over six test functions (x, y, x^2, y^2, x y, the weighted reward's exp), of
    ``E[f(stochastic)] - E[f(blend)]``, with the part that chance alone explains taken off: with ``repeats`` independent
    sets of ``count`` images, error^2 = mean(difference)^2 - variance(mean). ``pathwise`` is the root mean square
    distance of the two methods' images; ``order`` is the slope of log error against log steps, up to this row.
    """
    world = World(ring(), pick(("right", "centre")), 1.0)
    weights = [0.5, 0.5]
    reward = weighted_reward(world.rewards, weights)
    rows: list[Row] = []
    for kind in ("independent", "stratified"):
        before: Row | None = None
        for number in steps:
            differences, distances = [], []
            for repeat in range(repeats):
                key = seed * 100 + repeat
                blend = _run(world.blend(weights, 1.0, number), count, number, key)
                drawn = world.stochastic(weights, 1.0, number, kind, count, _generator(key, 6))
                stochastic = _run(drawn, count, number, key)
                differences.append(_features(stochastic, reward) - _features(blend, reward))
                distances.append(_rms(stochastic - blend))
            error, noise = _unbiased(torch.stack(differences))
            row = {"draws": kind, "steps": number, "error": error, "+-": noise, "pathwise": sum(distances) / repeats}
            row["order"] = math.nan if before is None else math.log2(before["error"] / error) if error > 0 else math.nan
            row["pathwise order"] = math.nan if before is None else math.log2(before["pathwise"] / row["pathwise"])
            rows.append(row)
            before = row
    return rows


def _features(x: Tensor, reward: Callable[[Tensor], Tensor]) -> Tensor:
    first, second = x[:, 0], x[:, 1]
    # The exp of the reward is scaled to about 1, like the others.
    tests = [first, second, first**2 / 2, second**2 / 2, first * second / 2, (reward(x) / 2).exp()]
    return torch.stack([test.mean() for test in tests])


def _unbiased(differences: Tensor) -> tuple[float, float]:
    """Root mean square of the true differences, and the standard error of the mean differences' root mean square."""
    mean, variance = differences.mean(0), differences.var(0) / len(differences)
    squared = float((mean.square() - variance).mean())
    return math.sqrt(max(squared, 0.0)), float(variance.mean().sqrt())


def kl_scale(seed: int, count: int, scales: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)) -> list[Row]:
    """The KL scale lambda against the distribution truly tuned at ``alpha / lambda``, for each of two rewards.

    ``reward`` and ``exact`` are mean rewards of the extrapolated model and of the truth; ``KL`` is the truth's KL
    divergence from the base in nats, estimated on its exact samples.
    """
    rows: list[Row] = []
    for name in ("right", "centre"):
        for alpha in (2.0, 1.0, 0.5):
            world = World(ring(), pick((name,)), alpha)
            for scale in scales:
                truth = world.exact([1.0], scale)
                target = truth.sample(count, _generator(seed, 4))
                run = _run(world.blend([1.0], scale, STEPS), count, STEPS, seed)
                reward = world.rewards[0]
                rows.append(
                    {
                        "reward": name,
                        "alpha": alpha,
                        "lambda": scale,
                        "SW blend": sliced_wasserstein(run, target),
                        "SW exact": sliced_wasserstein(_run(_exact(truth), count, STEPS, seed), target),
                        "mean reward": float(reward(run).mean()),
                        "exact": float(truth.mean_reward(reward)),
                        "KL": float((truth.log_density(target) - world.base.log_density(target)).mean()),
                    }
                )
    return rows
