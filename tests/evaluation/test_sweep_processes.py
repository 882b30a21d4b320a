"""Several processes and several calls in one folder: the folder is the union of what was asked, each picture made once."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.sweep.report import write_report
from diffusion_blend.evaluation.sweep.run import Sweep
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]
OVER: dict[str, Any] = {
    "images_per_point": 4,
    "batch": 2,
    "steps": 2,
    "save_images": 4,
    "resamples": 5,
    "claim_expiry": 60,
}
ALL: dict[str, Any] = {"methods": ["base", "blend", "stochastic", "soup"], "weights": [[1, 1], [1, 3]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def table(folder: Path, names: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
    with (folder / "samples.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in names} for row in csv.DictReader(file)]


def summary(folder: Path) -> Any:
    tables = json.loads((folder / "summary.json").read_text())
    del tables["settings"]
    return [
        {key: value for key, value in row.items() if key != "s/picture"} for rows in tables.values() for row in rows
    ]


def finish(ready: Sweep) -> None:
    write_report(ready, ready.run())


def in_a_process(work: Callable[[], None]) -> int:
    """Run a function in a child process, which has the libraries of this one already."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)  # pytest's own end is the parent's


def counted(folder: Path) -> Callable[[Sweep, Any, range], None]:
    """The making of a unit, noted by name in a file that all processes append to."""
    unit = Sweep._unit

    def noted(self: Sweep, point: Any, images: range) -> None:
        with (folder / "made.txt").open("a") as file:
            file.write(f"{os.getpid()} {point.folder} {images[0]}\n")
        unit(self, point, images)

    return noted


def made(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "made.txt").read_text().splitlines() if (folder / "made.txt").exists() else []
    return [(pid, unit) for pid, _, unit in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(sweep(settings(folder / "out", *world, **OVER, **ALL)))
    return folder / "out"


def test_processes_that_know_nothing_of_each_other_share_the_work_though_one_is_killed(
    world: World, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "_unit", counted(tmp_path))
    make = Sweep._unit

    def dies(self: Sweep, point: Any, images: range) -> None:
        if len([pid for pid, _ in made(tmp_path) if pid == str(os.getpid())]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # holding its second claim
        make(self, point, images)

    def dying() -> None:
        monkeypatch.setattr(Sweep, "_unit", dies)
        sweep(settings(tmp_path / "out", *world, **OVER, **ALL)).run()

    def working() -> None:
        finish(sweep(settings(tmp_path / "out", *world, **OVER, **ALL)))

    children = [in_a_process(dying), in_a_process(working)]
    while len(made(tmp_path)) < 4:  # in the middle
        time.sleep(0.01)
    children.append(in_a_process(working))  # a machine that is added later
    assert [os.waitpid(child, 0)[1] for child in children] == [signal.SIGKILL, 0, 0]
    assert table(tmp_path / "out") == table(whole)
    assert summary(tmp_path / "out") == summary(whole)
    units = [unit for _, unit in made(tmp_path)]
    assert len(units) == len(set(units)) == 7 * 2  # base and three methods at two preferences, two units each
    assert len({pid for pid, _ in made(tmp_path)}) == 3
    assert list((tmp_path / "out/claims").iterdir()) == []
    pictures = {file.name for file in (tmp_path / "out").rglob("*.png")}
    assert pictures >= {"000000.png", "000003.png", "pareto.png"}


def test_two_different_sweeps_at_once_end_in_one_table(world: World, tmp_path: Path, whole: Path) -> None:
    halves = [{**ALL, "methods": ["soup", "base"]}, {**ALL, "methods": ["stochastic", "blend"]}]
    children = [
        in_a_process(lambda half=half: finish(sweep(settings(tmp_path / "out", *world, **OVER, **half))))
        for half in halves
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    finish(sweep(settings(tmp_path / "out", *world, **OVER, **halves[0])))  # whoever comes last writes all of it
    assert table(tmp_path / "out") == table(whole)


def test_a_sweep_extended_twice_and_scored_again_is_the_one_asked_for_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = {"a": "own_rewards:plain_redness", "b": "own_rewards:plain_redness"}
    more = {**rewards, "c": "jpeg_compressibility"}
    finish(sweep(settings(tmp_path / "once", *world, **OVER, **ALL, rewards=more, kl_scales=[1.0, 0.5])))
    over = {**OVER, "kl_scales": [1.0]}
    finish(sweep(settings(tmp_path / "out", *world, **over, methods=["soup"], weights=[[1, 3]], rewards=rewards)))
    finish(sweep(settings(tmp_path / "out", *world, **over, **ALL, rewards=rewards)))
    kept = len(table(tmp_path / "out"))
    monkeypatch.setattr(Sweep, "_unit", counted(tmp_path))
    finish(sweep(settings(tmp_path / "out", *world, **over, methods=["base"], rewards=more)))
    assert made(tmp_path) == []  # only scores were added
    rest = {"methods": ["blend", "stochastic", "soup"], "weights": ALL["weights"], "kl_scales": [0.5]}
    ready = sweep(settings(tmp_path / "out", *world, **{**OVER, **rest}, rewards=rewards))
    finish(ready)  # the reward added before is a reward of the folder: it scores these pictures, too
    assert kept == 7 * 4 and len(table(tmp_path / "out")) == 13 * 4
    assert table(tmp_path / "out") == table(tmp_path / "once")
    assert summary(tmp_path / "out") == summary(tmp_path / "once")


def test_a_reward_cannot_be_added_where_pictures_were_not_kept(world: World, tmp_path: Path) -> None:
    over = {**OVER, "save_images": 1}
    sweep(settings(tmp_path / "out", *world, **over)).run()
    rewards = {"a": "own_rewards:plain_redness", "c": "colourfulness"}
    with pytest.raises(ValueError, match="'c' cannot be added .*000001.png was not kept"):
        sweep(settings(tmp_path / "out", *world, **over, rewards=rewards)).run()


def test_a_folder_of_an_earlier_version_keeps_its_rows(world: World, tmp_path: Path) -> None:
    over = {**OVER, "methods": ["base", "soup"]}
    first = sweep(settings(tmp_path / "out", *world, **over)).run()
    for file in (tmp_path / "out/points").iterdir():
        file.unlink()
    (tmp_path / "out/points").rmdir()
    settings_file = tmp_path / "out/settings.json"
    earlier = {key: value for key, value in json.loads(settings_file.read_text()).items() if key != "pictures"}
    settings_file.write_text(json.dumps(earlier))
    ready = sweep(settings(tmp_path / "out", *world, **{**over, "methods": ["blend"]}))
    assert not ready.records.rounds_pictures
    rows = ready.run()
    assert [row["method"] for row in rows] == ["base"] * 4 + ["blend"] * 4 + ["soup"] * 4
    assert [row for row in rows if row["method"] != "blend"] == first


def test_scores_of_another_program_are_joined(world: World, tmp_path: Path) -> None:
    ready = sweep(settings(tmp_path / "out", *world, **OVER, methods=["base", "soup"]))
    rows = ready.run()
    scores = tmp_path / "taste.csv"
    lines = [f"/elsewhere/{row['picture']},{i}" for i, row in enumerate(rows[:6])]
    scores.write_text("\n".join(["image,taste", *lines]) + "\n")
    over = {**OVER, "external_scores": [str(scores)]}
    again = sweep(settings(tmp_path / "out", *world, **over, methods=["base", "soup"]))
    joined = again.run()
    assert [row["taste"] for row in joined] == [0, 1, 2, 3, 4, 5, None, None]
    write_report(again, joined)
    # A later call that does not name the file still has its scores; means are over the pictures that have one.
    finish(sweep(settings(tmp_path / "out", *world, **OVER, methods=["base"])))
    means = {row["method"]: row["taste"][0] for row in json.loads((tmp_path / "out/summary.json").read_text())["means"]}
    assert means == {"base": 1.5, "soup": 4.5}
    for content, message in (
        ("picture,kl\nx/1.png,1\n", "'kl', whose name is taken"),
        ("file,taste\nx,1\n", "it needs picture"),
        ("picture,taste\nx/1.png,much\n", "'much', which is not a finite number"),
        ("picture,a\nx/1.png,1\n", "'a', a reward that this sweep computes"),
    ):
        scores.write_text(content)
        with pytest.raises(ValueError, match=message):
            sweep(settings(tmp_path / "out", *world, **over))


def test_several_settings_of_a_method_have_lines_of_their_own(world: World, tmp_path: Path) -> None:
    over = {**OVER, "methods": ["code", "blend"], "code_block": 1}
    finish(sweep(settings(tmp_path / "out", *world, **over, code_candidates=1)))
    finish(sweep(settings(tmp_path / "out", *world, **over, code_candidates=2)))
    text = (tmp_path / "out/summary.md").read_text()
    assert "| 1 candidates, block 1 |" in text and "| 2 candidates, block 1 |" in text


@pytest.mark.parametrize(
    ("environment", "gpus", "device", "is_first"),
    [
        ({}, 0, "cpu", True),
        ({}, 2, "cuda:0", True),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 4, "cuda:1", False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 1, "cuda:0", True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, 2, "cuda:1", False),
        ({"RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "true"}, 2, "cpu", False),
    ],
)
def test_a_process_finds_its_device(environment: dict[str, str], gpus: int, device: str, is_first: bool) -> None:
    worker = Worker.of_environment(environment, gpus)
    assert (str(worker.device), worker.is_first) == (device, is_first)
