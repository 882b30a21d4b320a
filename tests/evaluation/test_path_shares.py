"""The effective share of a sweep's blends: the weights are ratios of densities, and shares are means over prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_blend.blending.plans import Blend
from diffusion_blend.blending.step_info import StepInfo
from diffusion_blend.evaluation.sweep.path_shares import WeighedBlend, mean_share
from diffusion_blend.evaluation.sweep.report import write_report
from diffusion_blend.evaluation.sweep.steps import Planned
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd


def state(index: int, outputs: dict[Any, torch.Tensor], deviations: list[float]) -> Any:
    """A step as `StepState`: the mean is 2 x + 3 times the output."""
    latents = torch.ones(2, 1, 2, 2)
    return SimpleNamespace(
        info=StepInfo(index, 2, 0, range(2)),
        index=index,
        policy=SimpleNamespace(output=torch.tensor([3.0, 3.0])),
        predict=lambda row: outputs[row],
        mean=lambda output: 2 * latents + 3 * output,
        std=lambda: deviations[index],
    )


def test_weights_are_the_ratio_of_the_models_densities_to_the_blends() -> None:
    """``prod_i N(x; mu_i, s^2)^c_i / N(x; mu, s^2)``, the same for every x; with the base, which has the rest."""
    generator, coefficients = torch.Generator().manual_seed(3), (0.9, 0.4)
    rows = [((1.0, 0.0),), ((0.0, 1.0),), ((0.0, 0.0),)]
    outputs = {row: torch.randn((2, 1, 2, 2), generator=generator) for row in rows}
    deviations, stepper, expected = [0.7, 1.3], WeighedBlend(Blend(coefficients)), torch.zeros(2, dtype=torch.float64)
    for index in (0, 1):
        given = state(index, outputs, deviations)
        found, plain = stepper(given), Planned(Blend(coefficients))(given)
        torch.testing.assert_close(found.mean, plain.mean)
        x = torch.randn((2, 1, 2, 2), generator=generator).double()

        def density(output: torch.Tensor, x: torch.Tensor = x, s: float = deviations[index], given: Any = given) -> Any:
            return torch.distributions.Normal(given.mean(output).double(), s).log_prob(x).flatten(1).sum(1)

        shares = (*coefficients, 1 - sum(coefficients))
        mixed = torch.stack([c * outputs[row] for c, row in zip(shares, rows, strict=True)]).sum(0)
        expected += sum(c * density(outputs[row]) for c, row in zip(shares, rows, strict=True)) - density(mixed)
    assert stepper.log_weights is not None
    torch.testing.assert_close(stepper.log_weights, expected, rtol=1e-4, atol=1e-4)


def test_steps_without_noise_and_single_models_carry_no_weight() -> None:
    outputs = {((1.0, 0.0),): torch.ones(2, 1, 2, 2), ((0.0, 1.0),): torch.zeros(2, 1, 2, 2)}
    for coefficients, deviations in (((0.5, 0.5), [0.0, 0.0]), ((1.0, 0.0), [1.0, 1.0])):
        stepper = WeighedBlend(Blend(coefficients))
        stepper(state(0, outputs, deviations))
        assert stepper.log_weights is None


def test_a_share_is_the_mean_over_prompts_by_hand() -> None:
    """(1 + 3)^2 / (2 (1 + 9)) = .8 and 1; a factor that a prompt's pictures share does not count."""
    prompts = np.asarray([0, 0, 1, 1, 2])
    weights = np.log(np.asarray([1.0, 3.0, 7e5, 7e5, 1.0]))
    assert mean_share(weights, prompts) == pytest.approx(0.9)
    assert math.isnan(mean_share(weights[4:], prompts[4:]))
    assert math.isnan(mean_share(np.asarray([0.0, math.nan]), prompts[:2]))


def test_the_report_has_the_share_of_blends_on_noisy_steps(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = save_tiny_sd(tmp_path / "base")
    adapters = {name: write_adapter(tmp_path, base, name, seed) for seed, name in enumerate("ab")}
    over = {"methods": ["base", "blend", "soup"], "steps": 3, "images_per_point": 6, "measure_kl": False}
    ready = sweep(settings(tmp_path / "noisy", base, adapters, **over, eta=1.0))
    text = write_report(ready, ready.run())
    rows = json.loads((tmp_path / "noisy" / "summary.json").read_text())["means"]
    shares = {row["method"]: row.get("effective share") for row in rows}
    assert 0.5 <= shares["blend"] < 1  # two pictures a prompt
    assert shares["base"] is None and shares["soup"] is None
    assert "| effective share |" in text
    ready = sweep(settings(tmp_path / "silent", base, adapters, **over, eta=0.0))
    assert "effective share" not in write_report(ready, ready.run())
