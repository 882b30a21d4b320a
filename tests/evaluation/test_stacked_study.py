"""The stacked study: its samplers against the mixtures' own, its networks against the shipped side path, and its files."""

from __future__ import annotations

import json

import pytest
import torch
from diffusion_blend.evaluation.gaussian import command, stacked_study
from diffusion_blend.evaluation.gaussian.exact_study import pick
from diffusion_blend.evaluation.gaussian.learned_study import Adapted
from diffusion_blend.evaluation.gaussian.mixture import ring, weighted_reward
from diffusion_blend.evaluation.gaussian.networks import Denoiser, train_base
from diffusion_blend.evaluation.gaussian.stacked_networks import (
    StackedFactors,
    Tilts,
    _optimality,
    drawn_preferences,
    gradient_noise,
    train_stacked,
)
from diffusion_blend.evaluation.gaussian.units import Units


@pytest.fixture(scope="module")
def base() -> Denoiser:
    return train_base(ring(), seed=0, steps=150, batch=256)


def test_points_of_each_preference_are_points_of_its_own_tilt() -> None:
    rewards, preferences = pick(("right", "centre")), torch.tensor([[0.2, 0.8], [1.0, 0.0]], dtype=torch.float64)
    tilts = Tilts.of(ring(), rewards, 0.5, preferences)
    which = torch.arange(20_000) % 2
    points = tilts.sample(which, torch.Generator().manual_seed(0))
    for i, w in enumerate(preferences.tolist()):
        tilt = ring().tilted(weighted_reward(rewards, w), 0.5)
        for reward in rewards:
            values = reward(points[which == i])
            error = float(values.std() / len(values) ** 0.5)
            assert abs(float(values.mean()) - float(tilt.mean_reward(reward))) < 4 * error


def test_the_gates_of_the_training_are_those_of_the_side_path(base: Denoiser) -> None:
    factors = StackedFactors(base, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _, up in factors.pairs:
            up.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.1)
    x, gates = torch.randn(7, 2, generator=torch.Generator().manual_seed(3)), (0.3, 0.7)
    found = factors.denoise(torch.tensor([gates]).expand(7, 2), x, torch.full((7,), 0.8))
    model = Adapted(base, factors.adapters())
    with model.installed():
        torch.testing.assert_close(model.predict(gates, x, 0.8), found, rtol=1e-5, atol=1e-6)
        assert float((model.predict((1.0, 0.0), x, 0.8) - found).abs().max()) > 1e-2


def test_stacked_adapters_move_the_base_towards_each_tilt(base: Denoiser) -> None:
    rewards, preferences = pick(("right", "up")), drawn_preferences(2, 0)
    apart = drawn_preferences(2, 0, (0.5,), 0.1)
    assert len(apart) == len(preferences) and float((apart[:, 0] - 0.5).abs().min()) >= 0.1
    assert float((preferences[:, 0] - 0.5).abs().min()) < 0.1
    assert bool((preferences.sum(1) - 1).abs().max() < 1e-12) and int((preferences == 1).any(1).sum()) > 20
    tilts = Tilts.of(ring(), rewards, 0.5, preferences)
    model = Adapted(base, train_stacked(base, tilts, preferences, 0, 120, batch=256))
    x = ring().diffused(2.0).sample(500, torch.Generator().manual_seed(1))
    with model.installed():
        for w in (0.0, 0.5, 1.0):
            exact = ring().tilted(weighted_reward(rewards, [w, 1 - w]), 0.5).denoised(x, 2.0).float()
            errors = {g: (model.predict((g, 1 - g), x.float(), 2.0) - exact).square().mean() for g in (0.0, 0.5, 1.0)}
            assert min(errors, key=lambda g: errors[g]) == w


def test_the_three_ways_agree_in_the_corners_and_for_small_advantages() -> None:
    values = torch.randn(5, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second, third = _optimality(values, torch.tensor([[1.0, 0.0]] * 5, dtype=torch.float64))
    torch.testing.assert_close(first, third, rtol=0, atol=1e-5)
    torch.testing.assert_close(second, third, rtol=0, atol=1e-12)
    _, second, third = _optimality(values, torch.tensor([[0.5, 0.5]] * 5, dtype=torch.float64))
    assert float((second - third).abs().max()) > 0.01  # a large advantage of one reward is bounded before the sum
    assert bool(((third >= 0) & (third <= 1)).all())


def test_the_noise_of_the_sum_grows_with_the_scale_of_one_reward(base: Denoiser) -> None:
    even = gradient_noise(base, ring(), pick(("right", "up")), (1.0, 1.0), 0)
    uneven = gradient_noise(base, ring(), pick(("right", "up")), (1.0, 10.0), 0)
    assert uneven["a loss for each reward"] == pytest.approx(even["a loss for each reward"], rel=1e-3)
    assert uneven["one loss of the sum"] != pytest.approx(even["one loss of the sum"], rel=1e-2)


def test_a_finished_unit_is_read_and_other_settings_are_refused(tmp_path) -> None:
    made = []

    def make() -> dict[str, list[float]]:
        made.append(1)
        return {"x": [0.1 + 0.2]}

    first = Units(tmp_path, {"points": 3}).result("a", make)
    assert Units(tmp_path, {"points": 3}).result("a", make) == first == {"x": [0.1 + 0.2]} and made == [1]
    assert Units(None, {"points": 3}).result("a", make) == first and made == [1, 1]
    with pytest.raises(ValueError, match="made with other settings .*'points': 3.*now .*'points': 4.*another folder"):
        Units(tmp_path, {"points": 4}).result("a", make)


def test_the_command_goes_on_where_it_stopped_and_prints_what_it_writes(tmp_path, monkeypatch, capsys) -> None:
    effort = stacked_study.Effort

    def small(points, seeds, alpha):
        return effort(base_steps=3, adapter_steps=3, stacked_steps=3, points=points, seeds=seeds, alpha=alpha)

    monkeypatch.setattr(stacked_study, "Effort", small)
    monkeypatch.setattr(stacked_study, "STEPS", 4)
    monkeypatch.setattr(stacked_study, "WEIGHTS", (0.0, 0.125, 0.5))
    monkeypatch.setattr(stacked_study, "gradient_noise", lambda *_: {"one loss of the sum": 1.0})
    command.main(["stacked", "--points", "40", "--seeds", "0", "--output", str(tmp_path)])
    kept = (tmp_path / "units" / "stacked-0-right-up.json").stat().st_mtime_ns
    capsys.readouterr()
    assert command.main(["stacked", "--points", "40", "--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "units" / "stacked-0-right-up.json").stat().st_mtime_ns == kept
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "stacked.md").read_text(encoding="utf-8")
    tables = json.loads((tmp_path / "stacked.json").read_text(encoding="utf-8"))["tables"]
    ratios = tables["Ratio to the adapter trained for w"]
    assert [row["w"] for row in ratios[-2:]] == ["all mixtures", "held out"] and len(ratios) == 2 * 3 + 2
    assert (tmp_path / "stacked.png").stat().st_size > 10_000
    assert not list(tmp_path.glob(".*"))
    assert command.main(["stacked", "--alpha", "0", "--output", str(tmp_path / "x")]) != 0
