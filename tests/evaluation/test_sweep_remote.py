"""Sweeps whose output is a URL of fsspec, tried with its file system in memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from diffusion_blend.artifacts.files import check_file, check_folder
from diffusion_blend.artifacts.remote import Mirror, is_url
from diffusion_blend.evaluation.sweep import command
from diffusion_blend.evaluation.sweep.checks import check_config
from diffusion_blend.evaluation.sweep.run import Sweep
from sweeps import settings, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]
URL = "memory://bucket/results/first"
OVER: dict[str, Any] = {"images_per_point": 3, "batch": 2, "steps": 1, "save_images": 2, "resamples": 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def config_of(work: Path, world: World, methods: list[str], **over: Any) -> Any:
    work.parent.mkdir(parents=True, exist_ok=True)
    config = settings(work, *world, **{**OVER, "methods": methods, **over})
    return replace(config, output=URL, work_folder=str(work))


def files_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.relative_to(folder).parts[0] != "claims"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def copied(store: Any) -> dict[str, bytes]:
    return {
        name.removeprefix("/bucket/results/first/"): store.cat_file(name)
        for name in store.find("/bucket/results/first")
    }


def rows_of(content: bytes) -> list[dict[str, str]]:
    rows = csv.DictReader(content.decode().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_finished_folder_is_copied_and_another_machine_goes_on_from_the_copy(
    world: World, tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command._sweep(config_of(tmp_path / "one/work", world, ["base", "soup"]))
    assert capsys.readouterr().out.endswith(f"\n{URL}\n")
    assert copied(store) == files_of(tmp_path / "one/work")
    assert {"samples.csv", "summary.md", "settings.json"} <= set(copied(store))

    made: list[str] = []
    unit = Sweep._unit

    def noted(self: Sweep, point: Any, images: range) -> None:
        made.append(point.recipe["sampler"])
        unit(self, point, images)

    monkeypatch.setattr(Sweep, "_unit", noted)
    command._sweep(config_of(tmp_path / "two/work", world, ["blend"]))
    assert made == ["blend"] * 2  # units of the other methods came with the copy
    assert copied(store) == files_of(tmp_path / "two/work")

    monkeypatch.undo()
    (tmp_path / "whole").mkdir()
    whole = settings(tmp_path / "whole/sweep", *world, **OVER, methods=["base", "soup", "blend"])
    command._sweep(whole)
    assert rows_of(copied(store)["samples.csv"]) == rows_of((tmp_path / "whole/sweep/samples.csv").read_bytes())
    with pytest.raises(ValueError, match="is a sweep with other settings .steps: 1, now 2"):
        command._sweep(config_of(tmp_path / "three/work", world, ["base"], steps=2))


def test_pictures_that_are_there_are_not_copied_again(tmp_path: Path, store: Any) -> None:
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    (folder / "claims").mkdir()
    for name in ("images/0.png", "samples.csv", "claims/a.0", ".part"):
        (folder / name).write_text(name)
    mirror = Mirror(URL, folder, ("claims",))
    mirror.check()
    assert mirror.upload() == 2 and set(copied(store)) == {"images/0.png", "samples.csv"}
    assert mirror.upload() == 1 and mirror.fetch() == 0
    again = Mirror(URL, tmp_path / "again", ("claims",))
    assert again.fetch() == 2 and files_of(tmp_path / "again") == copied(store)


def test_a_copy_that_fails_leaves_the_folder_and_says_what_to_do(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples.csv").write_text("a\n1\n")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the bucket is gone")

    monkeypatch.setattr(type(store), "put", broken)
    with pytest.raises(
        OSError, match="RuntimeError: the bucket is gone.*is complete: the same command copies it again"
    ):
        Mirror(URL, tmp_path).upload()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nosuch://bucket/sweep", "cannot write to nosuch://bucket/sweep: ValueError: Protocol not known"),
        ("file:///dev/null/sweep", "cannot write to file:///dev/null/sweep: NotADirectoryError"),
        ("data://x/sweep", "cannot write to data://x/sweep: "),
        ("memory://", "'memory://' names no folder"),
    ],
)
def test_a_url_that_cannot_be_written_is_refused_before_the_work(
    output: str, message: str, world: World, tmp_path: Path
) -> None:
    config = replace(config_of(tmp_path / "work", world, ["base"]), output=output)
    with pytest.raises(ValueError, match=message):
        check_config(config)
    assert not (tmp_path / "work").exists()


def test_a_work_folder_needs_a_url_and_has_to_be_writable(world: World, tmp_path: Path, store: Any) -> None:
    config = config_of(tmp_path / "work", world, ["base"])
    with pytest.raises(ValueError, match="is a folder itself: leave work_folder out"):
        check_config(replace(config, output=str(tmp_path / "work")))
    with pytest.raises(ValueError, match="cannot write into /dev/null/work"):
        check_config(replace(config, work_folder="/dev/null/work"))
    check_config(config)
    assert copied(store) == {}  # the check leaves nothing behind


def test_commands_that_write_folders_and_files_refuse_urls() -> None:
    assert is_url("s3://bucket/x") and not is_url("C://x") and not is_url("runs/x")
    for check in (check_folder, check_file):
        with pytest.raises(ValueError, match="and not a URL; only a sweep writes to URLs"):
            check(Path("s3://bucket/run/x.csv"))
