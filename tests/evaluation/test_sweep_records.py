"""Interrupted, resumed, altered and extended sweeps; bad settings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from diffusion_blend.evaluation.sweep.command import main, parse
from diffusion_blend.evaluation.sweep.run import Sweep
from diffusion_blend.training.config import PromptConfig
from safetensors.torch import load_file, save_file
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def state() -> PartialState:
    return PartialState(cpu=True)


def content(folder: Path) -> dict[str, Any]:
    """All that a sweep wrote, without how long it took."""
    with (folder / "samples.csv").open() as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    pictures = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("images/**/*.png")}
    return {"rows": rows, **pictures}


OVER = {"methods": ["base", "stochastic"], "images_per_point": 5, "batch": 2, "save_images": 3}


def test_an_interrupted_sweep_ends_as_an_uninterrupted_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = world
    sweep(settings(tmp_path / "whole", base, adapters, **OVER)).run()
    done: list[Any] = []
    unit = Sweep._unit

    def broken(self: Sweep, point: Any, images: range) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((point.method, images))
        unit(self, point, images)

    monkeypatch.setattr(Sweep, "_unit", broken)
    with pytest.raises(KeyboardInterrupt):
        sweep(settings(tmp_path / "cut", base, adapters, **OVER)).run()
    assert not (tmp_path / "cut/samples.csv").exists()
    again: list[Any] = []
    monkeypatch.setattr(Sweep, "_unit", lambda self, p, i: (again.append((p.method, i)), unit(self, p, i))[1])
    sweep(settings(tmp_path / "cut", base, adapters, **OVER)).run()
    assert len(again) == 3 and not set(again) & set(done)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(content(tmp_path / "cut")) == 1 + 2 * 3  # and not only equal because empty


def test_a_sweep_is_extended_and_otherwise_left_alone(world: World, tmp_path: Path) -> None:
    base, adapters = world
    first = sweep(settings(tmp_path / "out", base, adapters, **OVER)).run()
    more = {**OVER, "methods": ["base", "stochastic", "soup"], "weights": [[1, 1], [1, 3]], "images_per_point": 6}
    second = sweep(settings(tmp_path / "out", base, adapters, **more)).run()
    assert len(second) == 6 * 5
    kept = [row for row in second if row["image"] < 4]  # whole units: their times tell that they were not made again
    assert [row["seconds"] for row in first if row["image"] < 4 and row["method"] == "base"] == [
        row["seconds"] for row in kept if row["method"] == "base"
    ]
    for altered in ({"seed": 1}, {"steps": 4}, {"guidance_scale": 2.0}, {"batch": 3}, {"eta": 0.5}):
        [(name, value)] = altered.items()
        with pytest.raises(ValueError, match=rf"other settings \({name}: .*, now {value}\)"):
            sweep(settings(tmp_path / "out", base, adapters, **{**OVER, **altered}))


def test_other_prompts_and_another_adapters_content_are_other_settings(world: World, tmp_path: Path) -> None:
    base, adapters = world
    sweep(settings(tmp_path / "out", base, adapters, **OVER)).run()
    tensors = {key: value * 1.01 for key, value in load_file(adapters["a"]).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="other settings .adapters:"):
        sweep(settings(tmp_path / "out", base, {**adapters, "a": tmp_path / "a.safetensors"}, **OVER))
    config = settings(tmp_path / "out", base, adapters, **OVER)
    (tmp_path / "prompts.txt").write_text("something else\n")
    with pytest.raises(ValueError, match="other settings .prompts:"):
        sweep(config)


def test_a_folder_with_other_things_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds files and no sweep"):
        sweep(settings(tmp_path / "out", *world, **OVER))


def test_equal_computations_are_done_once(world: World, tmp_path: Path) -> None:
    over = {"methods": ["base", "blend", "stochastic", "soup", "factor-soup", "msdda"], "weights": [[1, 0], [0, 1]]}
    ready = sweep(settings(tmp_path / "out", *world, kl_scales=[0.0, 1.0], **over))
    assert len(ready.points) == 1 + 5 * 2 * 2
    assert len(ready.units()) == 3  # the base, and each adapter alone


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"methods": ["blend", "magic"]}, "unknown method 'magic'"),
        ({"weights": [[1.0]]}, "1 numbers for 2 adapters"),
        ({"weights": [[0.0, 0.0]]}, "All weights are 0"),
        ({"weights": []}, "no preferences"),
        ({"methods": ["stochastic"], "kl_scales": [1.5]}, "cannot be drawn"),
        ({"images_per_point": 0}, "images_per_point is 0"),
        ({"grid": -1}, "grid is -1"),
        ({"etas": {"c": 0.5}}, "none of the adapters"),
        ({"rewards": {"kl": "jpeg_compressibility"}}, "'kl' is taken"),
        ({"rewards": {"a": "nonsense"}}, "unknown reward 'nonsense'"),
        ({"morl": {"0.5;0.5": "x"}}, "numbers with commas"),
        ({"eta": -0.5}, "eta is -0.5"),
        ({"methods": []}, "at least one"),
    ],
)
def test_settings_that_cannot_work(world: World, tmp_path: Path, over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(settings(tmp_path / "out", *world, **over))
    assert not (tmp_path / "out").exists()


ONE = {"weights": [[1.0]], "reward_units": "as_given"}


def test_files_that_cannot_be_adapters(world: World, tmp_path: Path) -> None:
    base, adapters = world
    tensors = load_file(adapters["a"])
    key = next(key for key in tensors if key.endswith("lora_down.weight"))
    cases = {
        "DoRA": {**tensors, key.replace("lora_down.weight", "dora_scale"): torch.ones(1)},
        "does not fit": {**tensors, key: torch.ones(2, 3)},
        "no lora_up|not whole": {k: v for k, v in tensors.items() if k != key.replace("down", "up")},
        "has no layer": {k.replace("attn1", "attn7"): v for k, v in tensors.items()},
        "no UNet weights": {"lora_te_x.alpha": torch.ones(1)},
    }
    for message, content in cases.items():
        save_file(content, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=message):
            sweep(settings(tmp_path / "out", base, {"bad": tmp_path / "bad.safetensors"}, **ONE))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read"):
        sweep(settings(tmp_path / "out", base, {"bad": tmp_path / "bad.safetensors"}, **ONE))


def test_coefficients_follow_the_reward_units(world: World, tmp_path: Path) -> None:
    """The adapters say KL weights 0.1 and 0.2."""
    base, adapters = world
    over = {"kl_scales": [2.0], "weights": [[0.25, 0.75]]}
    own = sweep(settings(tmp_path / "own", base, adapters, **over))
    given = sweep(settings(tmp_path / "given", base, adapters, reward_units="as_given", **over))
    assert own.points[0].recipe["coefficients"] == pytest.approx([0.5, 1.5])
    assert given.points[0].recipe["coefficients"] == pytest.approx([2 * 0.025 / 0.175, 2 * 0.15 / 0.175])
    assert list(own.scales) == pytest.approx([0.1, 0.2]) and list(given.scales) == [1.0, 1.0]


def test_the_command_writes_every_file(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapters = world
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n")
    words = ["--output", str(tmp_path / "out"), "--base.path", str(base), "--base.resolution", "8"]
    for name, file in adapters.items():
        words += [f"--adapters.{name}", str(file), f"--rewards.{name}", "colourfulness"]
    words += ["--grid", "2", "--images", "4", "--steps", "3", "--batch", "4", "--resamples", "20", "--save_images", "2"]
    words += ["--prompts.source", str(tmp_path / "prompts.txt"), "--kl_scales", "[0.5, 1]"]
    words += ["--methods", "[base, blend, soup]"]
    assert parse(words).prompts == PromptConfig(source=str(tmp_path / "prompts.txt"))
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/summary.md").read_text() in printed
    assert printed.count("| blend | 0.5/0.5 |") == 2  # once a KL scale
    assert "a / b" in printed
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written >= {
        "settings.json", "samples.csv", "summary.md", "summary.csv", "summary.json", "pareto.png", "kl_scale.png",
        "pictures.png",
    }  # fmt: skip
    assert main([*words, "--seed", "1"]) == 1
    assert "other settings (seed: 0, now 1)" in capsys.readouterr().err
