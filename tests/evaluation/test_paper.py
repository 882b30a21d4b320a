"""The paper's experiments: their settings, costs by hand, held-out prompts, and a whole run of each on a tiny pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusion_blend import command
from diffusion_blend.evaluation.paper.costs import BYTES_PER_PIXEL, CARDS, sweep_costs, training_cost
from diffusion_blend.evaluation.paper.experiment import experiment_names, load_experiment, merged
from diffusion_blend.evaluation.paper.tables import gain_rows, main_rows, wide_gains
from diffusion_blend.evaluation.sweep.statistics import collect_results
from diffusion_blend.training.geneval import geneval_prompts
from diffusion_blend.training.prompts import SHORT_DRAWBENCH, load_prompts
from make_paper_prompts import drawbench_test, geneval_test
from sweeps import write_adapter
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/paper"


def test_every_experiment_of_the_issue_is_there_and_reads(tmp_path: Path) -> None:
    assert experiment_names() == sorted(
        ["figure4", "figure5", "figure6", "figure8", "table1", "table3", "table5", "table6", "table7"]
    )
    for name in experiment_names():
        experiment = load_experiment(name, tmp_path)
        assert experiment.sweep.eta == 1 and experiment.sweep.steps == 50
        for training in experiment.trainings.values():
            assert (training.sampling.steps, training.sampling.eta, training.adapter.rank) == (50, 1.0, 4)
        if name != "table7":  # SDXL trains on one prompt for 2,000 rounds
            pictures = {t.run.iterations * t.sampling.samples for t in experiment.trainings.values()}
            assert pictures == {96_000}


def test_held_out_prompts_share_none_with_training() -> None:
    drawbench = load_prompts("configs/paper/short_drawbench_test.txt", 0, 0)
    geneval = load_prompts("configs/paper/geneval_test.txt", 0, 0)
    assert len(drawbench) == 1000 and not set(drawbench) & set(SHORT_DRAWBENCH)
    assert len(geneval) == 700 and not set(geneval) & set(geneval_prompts(550, 0))
    assert drawbench == drawbench_test(1000) and geneval == geneval_test(700)
    assert set(geneval_prompts(700, 1)) & set(geneval_prompts(550, 0))  # another seed alone does share some


def test_costs_by_hand(tmp_path: Path) -> None:
    experiment = load_experiment("table5", tmp_path)
    training = training_cost("jpeg", experiment.trainings["jpeg"])
    assert training.pictures == 96_000
    assert training.calls == 96_000 * 50 * 2 + 3 * 5 * 12 * 2 * 16_000
    costs = {cost.part: cost for cost in sweep_costs(experiment.sweep)}
    pictures = 32 * 1000
    assert costs["sweep base"].pictures == pictures and costs["sweep base"].calls == pictures * 50
    assert costs["sweep blend"].calls == 3 * pictures * 2 * 50
    assert costs["sweep code"].calls == 3 * pictures * 20 * 50
    kept = 8 * 512**2 * BYTES_PER_PIXEL
    assert costs["sweep base"].bytes == kept + 300 * pictures
    assert CARDS["a100"] * 50 == pytest.approx(5.46)


def test_the_dry_run_prints_costs_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["paper", "table1", "--output", str(tmp_path / "out"), "--dry-run"]
    assert command.main(words) == 0
    shown = capsys.readouterr().out
    assert "| train image_reward | 96,000 | 15,360,000 |" in shown and "| all |" in shown
    rows = dict(re.findall(r"^\| (sweep \S+) \| ([\d,]+) \|", shown, re.MULTILINE))
    # The corners of the other methods are computed once, with the first method that has them.
    assert rows["sweep base"] == "32,000" and rows["sweep code"] == "160,000" and rows["sweep soup"] == "288,000"
    assert list(tmp_path.iterdir()) == []
    assert command.main([*words, "--card", "abacus"]) == 1
    assert "--card abacus is not known" in capsys.readouterr().err
    assert command.main(["paper", "table9"]) == 1
    assert "no experiment 'table9': choose from figure4" in capsys.readouterr().err


REDNESS = "own_rewards:plain_redness"


def tiny(name: str, folder: Path, base: Path, **sweep: Any) -> Path:
    """Overrides that make an experiment tiny, with computed rewards."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    prompts = folder / "prompts.txt"
    prompts.write_text("a red cat\na dog\n")
    tiny_base = {"path": str(base), "precision": "fp32", "resolution": 8}
    over = {
        "common": {
            "base": tiny_base,
            "sampling": {"steps": 2, "samples": 2, "guidance_scale": 1.0},
            "algorithm": {"updates": 1, "buffer": 4},
            "value": {"updates": 1, "batch": 2},
            "optimizer": {"accumulate": 1},
            "run": {"iterations": 1, "save_every": 1, "watch_every": 0},
            "prompts": {"source": str(prompts), "count": 0},
        },
        "train": {adapter: {"rewards": {REDNESS: 1.0}} for adapter in content["train"]},
        "sweep": {
            "base": tiny_base,
            "rewards": dict.fromkeys(content["sweep"]["rewards"], REDNESS),
            "prompts": {"source": str(prompts), "count": 0},
            "images_per_prompt": 1,
            "steps": 2,
            "guidance_scale": 1.0,
            "code_candidates": 2,
            "code_block": 1,
            "resamples": 5,
            "save_images": 0,
            **sweep,
        },
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(over))
    return file


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    return {"sd": save_tiny_sd(folder / "sd"), "sdxl": save_tiny_sdxl(folder / "sdxl")}


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_runs_whole_and_prints_its_table(
    name: str, bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases["sdxl" if name == "table7" else "sd"]
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if name != "figure6":  # that one trains its adapter; the others find theirs
        (tmp_path / "out/adapters").mkdir(parents=True)
        for seed, adapter in enumerate(content["train"]):
            write_adapter(tmp_path / "out/adapters", base, adapter, seed)
    words = ["paper", name, "--output", str(tmp_path / "out"), "--overrides", str(tiny(name, tmp_path, base))]
    assert command.main(words) == 0
    report = (tmp_path / "out/paper.md").read_text()
    assert report in capsys.readouterr().out and report.startswith(f"# {content['title']}")
    header = next(line for line in report.splitlines() if line.startswith("| w |"))
    assert "DB-MPA" in header and ("DB-MPA mean" in header) == (content["form"] == "gain")
    preferences = content["sweep"].get("weights") or [[]] * 15
    scales = len(content["sweep"].get("kl_scales", [1.0]))
    rows = report.split(header)[1].split("\n\n")[0].splitlines()
    assert len(rows) - 2 == len(preferences) * scales + (content["form"] == "absolute")
    assert "| method | w | pictures |" in report
    again = command.main([*words, "--dry-run"])
    assert again == 0 and "there already: none" not in capsys.readouterr().out


def rows(
    method: str, weights: tuple[float | None, float | None], a: list[float], b: list[float]
) -> list[dict[str, Any]]:
    return [
        {
            "method": method, "w_a": weights[0], "w_b": weights[1], "kl_scale": 0.0 if weights[0] is None else 1.0,
            "image": i, "prompt": f"p{i // 2}", "a": x, "b": y, "kl": None, "seconds": 2.0, "calls": 5.0,
        }
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]  # fmt: skip


def test_tables_by_hand() -> None:
    found = rows("base", (None, None), [0, 0, 0, 0], [1, 1, 1, 1])
    found += rows("blend", (0.5, 0.5), [1, 1, 3, 3], [2, 2, 2, 2]) + rows(
        "soup", (0.5, 0.5), [1, 1, 1, 1], [0, 0, 0, 0]
    )
    results = collect_results(found, ["a", "b"], ["a", "b"], [1.0, 1.0])
    row, seconds = main_rows(results, ["a", "b"])
    assert row == {"w": "0.5/0.5", "SD r1": 0, "SD r2": 1, "DB-MPA r1": 2, "DB-MPA r2": 2, "RS r1": 1, "RS r2": 0}
    assert seconds["SD r1"] == 2 and np.isnan(seconds["SD r2"])
    gains = gain_rows(results, ["a", "b"])
    assert [(g["method"], g["d r1"][0], g["d r2"][0], g["mean"][0], g["d r(w)"][0], g["wins"]) for g in gains] == [
        ("DB-MPA", 2, 1, 1.5, 1.5, 1),
        ("RS", 1, -1, 0, 0, pytest.approx(np.nan, nan_ok=True)),
    ]
    # Two prompts of two pictures: the interval is that of the two prompts' means, 1 and 3: t(1) * sqrt(2) / sqrt(2).
    assert gains[0]["d r1"][1] == pytest.approx(12.7062, rel=1e-4)
    [wide] = wide_gains(gains, ["a", "b"])
    assert wide["DB-MPA mean"] == 1.5 and wide["RS d r2"] == -1


def test_overrides_replace_rewards_and_merge_the_rest() -> None:
    base = {"rewards": {"a": 1}, "run": {"seed": 1, "keep": 2}}
    assert merged(base, {"rewards": {"b": 2}, "run": {"seed": 3}}) == {
        "rewards": {"b": 2},
        "run": {"seed": 3, "keep": 2},
    }


def test_the_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["paper", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == experiment_names() and "Table 1 and Figure 2" in "".join(lines)
    assert command.main(["paper"]) == 1
    assert "no experiment: give one of figure4" in capsys.readouterr().err
