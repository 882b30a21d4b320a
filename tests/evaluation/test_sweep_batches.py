"""The number of pictures of a network call: found by memory, and without effect on the pictures."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.evaluation.sweep.batches import Batches, first_call, unit_size
from diffusion_blend.evaluation.sweep.checks import check_config
from diffusion_blend.evaluation.sweep.command import parse
from diffusion_blend.evaluation.sweep.run import Sweep
from diffusion_blend.evaluation.sweep.runner import MethodRunner
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]
METHODS = ["base", "blend", "stochastic", "early", "code"]
OVER: dict[str, Any] = {"methods": METHODS, "images_per_point": 7, "steps": 2, "save_images": 7, "code_candidates": 2}
SCORED = ("a", "b", "kl", "log_weight")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def out_of_memory(limit: dict[str, int], made: list[tuple[str, int]]) -> Any:
    """Sampling on a device that takes a limited number of pictures of each method."""
    sample = MethodRunner.sample

    def limited(self: MethodRunner, point: Any, chunk: Any, cost: Any) -> Any:
        method = point.recipe["sampler"]
        made.append((method, len(chunk.images)))
        if len(chunk.images) > limit.get(method, 99):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return sample(self, point, chunk, cost)

    return limited


def test_memory_that_runs_out_halves_the_calls_and_changes_no_picture(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "diffusion_blend")
    sweep(settings(tmp_path / "plain", *world, **OVER)).run()
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(MethodRunner, "sample", out_of_memory({"code": 1, "blend": 2}, made))
    sweep(settings(tmp_path / "small", *world, **OVER)).run()
    monkeypatch.undo()
    # Units of 4 and 3 pictures; a size that did not fit is not tried again.
    assert [size for method, size in made if method == "code"] == [4, 2] + [1] * 7
    assert [size for method, size in made if method == "blend"] == [4, 2, 2, 2, 1]
    assert [size for method, size in made if method == "base"] == [4, 3]
    assert "blend: 4 pictures at once do not fit in memory; 2 from now on" in caplog.messages
    units = [
        {str(file.relative_to(tmp_path / name)) for file in (tmp_path / name).rglob("*-*.json")}
        for name in ("plain", "small")
    ]
    assert units[0] == units[1]
    for before, after in zip(rows_of(tmp_path / "plain"), rows_of(tmp_path / "small"), strict=True):
        for name in SCORED:
            assert before[name] == after[name] == "" or float(after[name]) == pytest.approx(
                float(before[name]), rel=1e-3, abs=1e-3
            )
        assert {k: v for k, v in before.items() if k not in SCORED} == {
            k: v for k, v in after.items() if k not in SCORED
        }


def test_one_picture_that_does_not_fit_is_an_error_with_a_way_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MethodRunner, "sample", out_of_memory({"blend": 0}, []))
    with pytest.raises(
        ValueError, match="blend: memory does not take a single picture .CUDA out of memory.*base.precision"
    ):
        sweep(settings(tmp_path / "out", *world, steps=1)).run()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(_: range) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Batches(4).run("blend", range(4), broken)


def test_the_cpu_and_mps_run_out_of_memory_too() -> None:
    for message in (
        "MPS backend out of memory (MPS allocated)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory",
    ):
        tried: list[int] = []

        def work(part: range, message: str = message, tried: list[int] = tried) -> range:
            tried.append(len(part))
            if len(part) > 2:
                raise RuntimeError(message)
            return part

        assert Batches(8).run("base", range(3, 8), work) == [range(3, 5), range(5, 7), range(7, 8)]
        assert tried == [5, 2, 2, 1]


def test_auto_has_units_of_its_own_and_a_size_for_each_device(world: World, tmp_path: Path) -> None:
    config = settings(tmp_path / "out", *world, batch="auto", images_per_point=40)
    check_config(config)
    assert unit_size(config) == 32
    assert [first_call(config, torch.device(name)) for name in ("cpu", "cuda")] == [8, 32]
    ready = sweep(config)
    assert [images for _, images in ready.units()] == [range(32), range(32, 40)]
    assert ready.batches.size == 8
    words = ["--output", "x", "--adapters", "{a: b}", "--rewards", "{a: b}", "--batch"]
    assert parse([*words, "auto"]).batch == "auto" and parse([*words, "4"]).batch == 4
    with pytest.raises(ValueError, match="batch is 0"):
        check_config(parse([*words, "0"]))


def test_rewards_are_added_in_parts_that_fit(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {"images_per_point": 4, "steps": 1, "save_images": 4}
    sweep(settings(tmp_path / "out", *world, **over)).run()
    ready = sweep(
        settings(tmp_path / "out", *world, **over, rewards={"a": "own_rewards:plain_redness", "c": "colourfulness"})
    )
    plain, seen = ready.rewards["c"], list[int]()

    def limited(images: torch.Tensor, prompts: Any) -> Any:
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(images, prompts)

    monkeypatch.setitem(ready.rewards, "c", limited)  # pyright: ignore[reportArgumentType]
    rows = ready.run()
    assert seen == [4, 2, 2] and all(row["c"] is not None for row in rows)


def test_only_calls_without_adapters_are_compiled(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, calls = ["base", "blend", "code"], list[str]()
    over = {"methods": methods, "steps": 2, "code_candidates": 2, "measure_kl": False, "images_per_point": 3}
    plain = sweep(settings(tmp_path / "plain", *world, **over)).run()

    class Compiled(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            assert not any(module._forward_hooks for module in self.network.modules())
            calls.append("compiled")
            return self.network(*args, **kwargs)

    unit = Sweep._unit

    def noted(self: Sweep, point: Any, images: range) -> None:
        calls.append(point.recipe["sampler"])
        unit(self, point, images)

    monkeypatch.setattr(torch, "compile", Compiled)
    monkeypatch.setattr(Sweep, "_unit", noted)
    found = sweep(settings(tmp_path / "compiled", *world, **over, compile_base=True)).run()
    assert calls == ["blend", "code", *["compiled"] * 3, "base", *["compiled"] * 2]
    assert [row["a"] for row in found] == [row["a"] for row in plain]
    monkeypatch.undo()
    again = sweep(settings(tmp_path / "compiled", *world, **over))  # not a setting of the folder
    assert again.run() == found


@pytest.mark.full
def test_the_compiled_base_is_the_base(world: World, tmp_path: Path) -> None:
    over = {"methods": ["base"], "steps": 2, "images_per_point": 2, "measure_kl": False}
    plain = sweep(settings(tmp_path / "plain", *world, **over)).run()
    found = sweep(settings(tmp_path / "compiled", *world, **over, compile_base=True)).run()
    assert [row["a"] for row in found] == pytest.approx([row["a"] for row in plain], abs=1e-3)
