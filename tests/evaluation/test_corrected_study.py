"""The corrected study: its particles, its fast denoiser, resuming, and the criteria on a small run."""

import json

import pytest
import torch
from diffusion_blend.evaluation.gaussian.command import main
from diffusion_blend.evaluation.gaussian.corrected import corrected_blend, denoiser
from diffusion_blend.evaluation.gaussian.corrected_study import ratio, worlds
from diffusion_blend.evaluation.gaussian.distance import sliced_wasserstein
from diffusion_blend.evaluation.gaussian.resumed import run_units


@pytest.mark.parametrize("name", ["ring", "wide ring"])
def test_the_fast_denoiser_is_the_exact_one(name):
    x = 3 * torch.randn((40, 2), generator=torch.Generator().manual_seed(0))
    world = worlds(0.25)[name]
    for mixture in [*world.adapters(), world.exact([0.5, 0.5])]:
        for sigma in (0.02, 1.0, 20.0):
            assert torch.allclose(denoiser(mixture)(x, sigma).double(), mixture.denoised(x.double(), sigma), atol=1e-5)


def test_corrected_comes_to_the_truth_where_the_blend_does_not():
    """The wide ring, alpha .25: 64 particles come as near as the exact model up to the samples' noise, the blend does not."""
    world, groups = worlds(0.25)["wide ring"], 400
    models, truth = [denoiser(adapter) for adapter in world.adapters()], world.exact([0.5, 0.5])
    distances = {"blend": [], "corrected": [], "oracle": []}
    for seed in range(2):
        target = truth.sample(groups, torch.Generator().manual_seed(seed)).float()
        runs = {
            "blend": (models, [0.5, 0.5], 1),
            "corrected": (models, [0.5, 0.5], 64),
            "oracle": ([denoiser(truth)], [1.0], 1),
        }
        for kind, (used, mix, count) in runs.items():
            run = corrected_blend(used, mix, groups, count, 50, torch.Generator().manual_seed(100 + seed))
            distances[kind].append(sliced_wasserstein(run.samples[:, 0], target))
    corrected, blend = (ratio(distances[kind], distances["oracle"])[0] for kind in ("corrected", "blend"))
    assert corrected < 1.5
    assert blend > 2.5


def test_one_particle_is_the_blend_and_equal_models_have_a_share_of_one():
    world = worlds(0.5)["ring"]
    model = denoiser(world.adapters()[0])
    one = corrected_blend([model], [1.0], 50, 1, 10, torch.Generator().manual_seed(3))
    same = corrected_blend([model, model], [0.5, 0.5], 50, 1, 10, torch.Generator().manual_seed(3))
    assert torch.allclose(one.samples, same.samples, atol=1e-4)
    assert one.share == pytest.approx(1)
    assert same.share == pytest.approx(1)


def test_copies_are_weighed_together():
    world = worlds(0.5)["wide ring"]
    models = [denoiser(adapter) for adapter in world.adapters()]
    shares = [
        corrected_blend(models, [0.5, 0.5], 200, 1, 30, torch.Generator().manual_seed(3), copies).share
        for copies in (1, 8)
    ]
    assert shares[1] < shares[0] / 2
    assert corrected_blend(models, [0.5, 0.5], 3, 2, 5, torch.Generator(), 4).samples.shape == (3, 4, 2)


def test_the_ratio_of_paired_values_has_the_interval_of_its_residuals():
    assert ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx((2.0, 0.0))
    value, half = ratio([2.0, 4.0, 7.0], [1.0, 2.0, 3.0])
    assert value == pytest.approx(13 / 6)
    assert 0 < half < 1


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path):
    ran = []

    def unit(name):
        return name, lambda: ran.append(name) or {"value": name}

    path = tmp_path / "study.jsonl"
    run_units(path, {"points": 1}, [unit("a"), unit("b")])
    with path.open("a") as file:
        file.write('{"unit": "c", "ro')  # killed while it wrote
    found = run_units(path, {"points": 1}, [unit("a"), unit("b"), unit("c")])
    assert ran == ["a", "b", "c"]
    assert found == {name: {"value": name} for name in "abc"}
    assert len(path.read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="of another setting"):
        run_units(path, {"points": 2}, [])
    path.write_text('{"setting": {"points": 1}}\n[]\n')
    with pytest.raises(ValueError, match="cannot be read as the results"):
        run_units(path, {"points": 1}, [])


def test_the_command_writes_tables_figure_and_json(tmp_path, capsys):
    words = ["corrected", "--seeds", "2", "--points", "20", "--parts", "noise", "--output", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0  # all units are there
    assert capsys.readouterr().out == first
    rows = json.loads((tmp_path / "corrected.json").read_text())["tables"]
    assert [row["eta"] for rows in rows.values() for row in rows] == [1.0, 0.5, 0.0] * 2
    assert (tmp_path / "corrected.png").stat().st_size > 1000
