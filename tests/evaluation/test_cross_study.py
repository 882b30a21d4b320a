"""Cross and distilled adapters: their laws, and on a small training that they come nearer to the blend than the soup."""

import json

import pytest
import torch
from diffusion_blend.blending.adapters import LowRank
from diffusion_blend.evaluation.gaussian import cross_study
from diffusion_blend.evaluation.gaussian.cross import cross_gate, pairs_of, predict, train_cross, train_distilled
from diffusion_blend.evaluation.gaussian.learned_study import Adapted, Effort
from diffusion_blend.evaluation.gaussian.networks import Denoiser


@pytest.fixture(scope="module")
def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser().requires_grad_(False)


def adapter(base, seed, size=0.15):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}": [
            LowRank(
                torch.randn((8, layer.in_features), generator=generator) / layer.in_features**0.5,
                torch.randn((layer.out_features, 8), generator=generator) * size,
            )
        ]
        for i, layer in enumerate(base.layers)
    }


def test_the_differentiable_prediction_is_that_of_the_side_path(base):
    adapters = [adapter(base, 1), adapter(base, 2)]
    x = torch.randn((7, 2), generator=torch.Generator().manual_seed(3))
    model = Adapted(base, adapters)
    with model.installed():
        expected = model.predict((0.3, 0.6), x, 0.7)
    found = predict(base, [pairs_of(own) for own in adapters], [0.3, 0.6], x, torch.full((7,), 0.7))
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_gate_is_nothing_in_the_corners_and_one_halfway():
    assert [cross_gate(w, 1 - w) for w in (0.0, 0.5, 1.0)] == [0, 1, 0]


@pytest.mark.parametrize("mix", [(0.5, 0.5), (0.9, 0.6)])
def test_both_come_nearer_to_the_blend_than_the_soup(base, mix):
    """Untrained networks, 150 steps; the second mix is a KL scale of 1.5, with the base at -.5."""
    adapters = [adapter(base, 1), adapter(base, 2)]
    points = torch.randn((500, 2), generator=torch.Generator().manual_seed(4))
    x = torch.randn((400, 2), generator=torch.Generator().manual_seed(5)) * 2
    sigma = torch.full((400,), 1.0)
    first, second = map(pairs_of, adapters)
    parts = [predict(base, [own], [1.0], x, sigma) for own in (first, second)] + [predict(base, [], [], x, sigma)]
    blend = mix[0] * parts[0] + mix[1] * parts[1] + (1 - sum(mix)) * parts[2]

    def error(found):
        return float((found - blend).square().mean().sqrt())

    soup = error(predict(base, [first, second], list(mix), x, sigma))
    distilled = pairs_of(train_distilled(base, adapters, mix, 16, points, 1, 150))
    assert error(predict(base, [distilled], [1.0], x, sigma)) < soup / 2
    if sum(mix) == 1:
        cross = pairs_of(train_cross(base, adapters, points, 1, 150))
        assert error(predict(base, [first, second, cross], [0.5, 0.5, 1.0], x, sigma)) < soup / 2


def test_a_small_study_is_printed_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_study, "ALPHAS", (0.5,))
    monkeypatch.setattr(cross_study, "PAIRS", (("right", "up"),))
    effort = Effort(base_steps=30, adapter_steps=20)
    first = cross_study.study(tmp_path, 2, 60, effort, 5)
    assert cross_study.study(tmp_path, 2, 60, effort, 5) == first
    table, overall = first.values()
    assert [row["w"] for row in table] == [0.25, 0.5, 0.75]
    assert [row["runs"] for row in overall] == [6, 6]
    assert len((tmp_path / "cross.jsonl").read_text().splitlines()) == 3
    assert json.dumps(first)
