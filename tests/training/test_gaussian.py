"""Where the truth is known: a Gaussian base and linear or quadratic rewards have closed-form optima."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel, best_policy, chain, final_moments
from torch import Tensor
from training_runs import make_trainer, settings


def train(tmp_path: Path, curvature: float, gradient: float, kl_weight: float, **algorithm: Any) -> Trainer:
    """Train the affine policy of a Gaussian pixel for ``r(x) = -curvature x^2 / 2 + gradient x``."""

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        x = images[:, 0, 0, 0].double()
        return -curvature / 2 * x**2 + gradient * x

    config = settings(
        tmp_path / f"{curvature}-{gradient}-{kl_weight}-{len(algorithm)}",
        rewards={"known": 1.0},
        sampling={"steps": 20, "samples": 256, "batch": 256},
        algorithm={"kl_weight": kl_weight, "buffer": 256 * 20, "updates": 6, **algorithm},
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 4},
        value={"updates": 10, "batch": 512, "learning_rate": 3e-3, "hidden": 32},
        run={"iterations": 60, "stop_diversity": 0.0, "save_every": 10**6},
    )
    trainer = make_trainer(config, GaussianModel(0.5, 0.6), {"known": reward}, ["x"])
    trainer.run()
    return trainer


def moments(trainer: Trainer) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and variance of x_0 under the base and under the trained policy, without sampling noise."""
    model, steps = trainer.context.model, trainer.context.steps
    assert isinstance(model, GaussianModel)
    return (
        final_moments(chain(model, steps, base=True), steps.std),
        final_moments(chain(model, steps, base=False), steps.std),
    )


@pytest.mark.parametrize(("curvature", "gradient", "kl_weight"), [(0.0, 1.0, 1.0), (2.0, 2.5, 1.0)])
def test_training_converges_to_the_tilted_gaussian(
    curvature: float, gradient: float, kl_weight: float, tmp_path: Path
) -> None:
    trainer = train(tmp_path, curvature, gradient, kl_weight)
    (base_mean, base_variance), (mean, variance) = moments(trainer)
    # p_base(x) exp(r(x) / alpha), completed to a square
    precision = 1 / base_variance + curvature / kl_weight
    tilted_mean = (base_mean / base_variance + gradient / kl_weight) / precision
    # The policy's variance per step is the sampler's: with 20 steps the best reachable variance is this, not 1/precision
    base_chain = chain(trainer.context.model, trainer.context.steps, base=True)  # pyright: ignore[reportArgumentType]
    best = final_moments(
        best_policy(base_chain, trainer.context.steps.std, curvature, gradient, kl_weight), trainer.context.steps.std
    )
    print(
        f"curvature {curvature} gradient {gradient}: base {base_mean:.4f} {base_variance:.4f}, trained {mean:.4f} "
        f"{variance:.4f}, best policy {best[0]:.4f} {best[1]:.4f}, tilted {tilted_mean:.4f} {1 / precision:.4f}"
    )
    assert mean == pytest.approx(tilted_mean, abs=0.06)
    assert variance == pytest.approx(1 / precision, rel=0.10)
    assert mean == pytest.approx(best[0], abs=0.05)
    assert variance == pytest.approx(best[1], rel=0.06)
    assert abs(base_mean - tilted_mean) > 0.2  # there was something to learn


def test_a_larger_kl_weight_gives_a_smaller_kl(tmp_path: Path) -> None:
    """Monotone over four values, and near the closed form ``KL = base_variance gradient^2 / (2 alpha^2)``."""
    measured, expected = [], []
    for kl_weight in (0.7, 1.0, 1.5, 3.0):
        trainer = train(tmp_path, 0.0, 1.0, kl_weight)
        last = trainer.state.history[-10:]
        measured.append(sum(row["kl"] for row in last) / len(last))
        expected.append(moments(trainer)[0][1] / (2 * kl_weight**2))
    print("alpha 0.7, 1, 1.5, 3: KL", [f"{kl:.4f}" for kl in measured], "closed form", [f"{kl:.4f}" for kl in expected])
    assert measured == sorted(measured, reverse=True)
    for kl, truth in zip(measured, expected, strict=True):
        assert kl == pytest.approx(truth, rel=0.2, abs=0.01)


def test_without_later_kl_in_the_return_the_optimum_is_missed(tmp_path: Path) -> None:
    """DPOK's code leaves out what a step does to later KLs: with a curved reward and a small KL weight the difference shows."""
    curvature, kl_weight = 4.0, 0.5
    exact = train(tmp_path, curvature, 0.0, kl_weight)
    short = train(tmp_path, curvature, 0.0, kl_weight, kl_in_return=False)
    base_chain = chain(exact.context.model, exact.context.steps, base=True)  # pyright: ignore[reportArgumentType]
    _, best = final_moments(
        best_policy(base_chain, exact.context.steps.std, curvature, 0.0, kl_weight), exact.context.steps.std
    )
    with_return, without = moments(exact)[1][1], moments(short)[1][1]
    print(f"variance: best {best:.4f}, with later KL {with_return:.4f}, without {without:.4f}")
    assert with_return == pytest.approx(best, rel=0.1)
    assert abs(with_return - best) < abs(without - best)
