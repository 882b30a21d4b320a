"""The sweep's corrected blend: the plain blend with one candidate, and the product of the models' runs with many."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.blending.plans import Blend
from diffusion_blend.evaluation.sweep.corrected import CorrectedBlend
from diffusion_blend.evaluation.sweep.steps import Chunk, Cost
from diffusion_blend.training.ddim import ddim_steps
from diffusion_blend.training.models.protocol import Conditioning
from sweeps import latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]
SHARES, MEANS, VARIANCES = (0.6, 0.4), (-1.0, 1.0), (0.3, 1.2)
ALPHAS = torch.linspace(0.999, 0.01, 100, dtype=torch.float64).square()  # of a schedule with little left at its end
STEPS = ddim_steps(ALPHAS, torch.arange(99, 0, -9), 1.0, 1.0, "epsilon")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base", prediction_type="epsilon")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def test_one_candidate_is_the_blend(world: World, tmp_path: Path) -> None:
    ready = sweep(settings(tmp_path / "out", *world, methods=["blend", "corrected"], particles=1))
    torch.testing.assert_close(latents(ready, 0, range(3)), latents(ready, 1, range(3)), rtol=1e-4, atol=1e-4)


def test_pictures_do_not_depend_on_the_chunk_and_cost_k_blends(world: World, tmp_path: Path) -> None:
    given = settings(tmp_path / "out", *world, methods=["blend", "corrected"], particles=3)
    ready = sweep(given)
    torch.testing.assert_close(latents(ready, 1, range(4))[2:3], latents(ready, 1, [2]), rtol=1e-4, atol=1e-4)
    rows = ready.run()
    calls = {row["method"]: row["calls"] for row in rows}
    assert calls["corrected"] == 3 * calls["blend"]
    assert {row["kl"] for row in rows if row["method"] == "corrected"} == {None}
    # More candidates are another point of the same folder.
    more = sweep(settings(tmp_path / "out", *world, methods=["corrected"], particles=2)).run()
    assert {row["settings"] for row in more if row["method"] == "corrected"} == {"3 particles", "2 particles"}


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"eta": 0.0, "measure_kl": False}, "needs steps with noise"),
        ({"scheduler": "EulerDiscreteScheduler", "measure_kl": False}, "weighs its candidates"),
        ({"particles": 0}, "particles"),
        ({"resample_below": 1.5}, "resample_below"),
    ],
)
def test_settings_that_leave_nothing_to_weigh_are_refused(world: World, tmp_path: Path, over: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sweep(settings(tmp_path / "out", *world, methods=["corrected"], **over))


class _Gaussians:
    """A network whose gates choose the exact model of one of two normal distributions."""

    device = torch.device("cpu")

    def inputs(self, conditioning: Any) -> dict[str, Any]:
        return {}

    @contextlib.contextmanager
    def adapted(self, updates: Any) -> Iterator[None]:
        yield

    def output(self, row: Any, x: torch.Tensor, timestep: float, inputs: Any) -> torch.Tensor:
        ((first, _),) = row
        slope, constant = _epsilon(int(timestep), 0 if first else 1)
        return slope * x + constant


def _epsilon(timestep: int, model: int) -> tuple[float, float]:
    """The predicted noise of ``N(m, v)`` as ``slope x + constant``."""
    signal = float(ALPHAS[timestep])
    slope = math.sqrt(1 - signal) / (signal * VARIANCES[model] + 1 - signal)
    return slope, -slope * math.sqrt(signal) * MEANS[model]


def _product_of_runs() -> tuple[float, float]:
    """Mean and variance of the last latent under ``prod_i p_i(run)^c_i``, which is a Gaussian over the runs."""
    count = len(STEPS.timesteps)
    precision, linear = torch.zeros((count, count), dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    precision[0, 0] += 1
    for index in range(count - 1):
        for share, model in zip(SHARES, (0, 1), strict=True):
            slope, constant = _move(index, model)
            row = torch.zeros(count, dtype=torch.float64)
            row[index + 1], row[index] = 1, -slope
            weight = share / float(STEPS.std[index]) ** 2
            precision += weight * torch.outer(row, row)
            linear += weight * constant * row
    covariance = torch.linalg.inv(precision)
    moves = [_move(count - 1, model) for model in (0, 1)]
    slope, constant = (sum(c * move[k] for c, move in zip(SHARES, moves, strict=True)) for k in (0, 1))
    mean = slope * float((covariance @ linear)[-1]) + constant
    return mean, slope**2 * float(covariance[-1, -1])


def _move(index: int, model: int) -> tuple[float, float]:
    slope, constant = _epsilon(int(STEPS.timesteps[index]), model)
    output = float(STEPS.output[index])
    return float(STEPS.state[index]) + output * slope, output * constant


def _samples(particles: int, count: int) -> torch.Tensor:
    noise = torch.randn((count, len(STEPS.timesteps) + 1, 1, 1, 1), generator=torch.Generator().manual_seed(1))
    chunk = Chunk(range(count), ["x"] * count, range(count), Conditioning({}, {}, torch.zeros(0)), noise)
    sampler = CorrectedBlend(Blend(SHARES), particles, 0.5, 0)
    return sampler.run(_Gaussians(), STEPS, chunk, Cost()).latents.flatten().double()  # type: ignore[arg-type]


def test_many_candidates_sample_the_product_of_the_models_runs() -> None:
    assert float(STEPS.std[-1]) == 0
    mean, variance = _product_of_runs()
    blend, corrected = _samples(1, 2000), _samples(16, 500)
    error = math.sqrt(variance / 500)
    assert abs(float(blend.mean()) - mean) > 4 * error, "the blend alone is biased here"
    assert abs(float(corrected.mean()) - mean) < 3 * error
    assert abs(float(corrected.var()) / variance - 1) < 4 * math.sqrt(2 / 500)


if __name__ == "__main__":
    print(_product_of_runs(), [(float(x.mean()), float(x.var())) for x in (_samples(1, 2000), _samples(16, 500))])
