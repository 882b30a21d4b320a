"""Settings for tables like the paper's: weights per method, pictures per prompt, affine rewards, KL scales left out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusion_blend.artifacts.command_line import CommandFailed
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.sweep.checks import check_config, check_files
from diffusion_blend.evaluation.sweep.prepare import _load_rewards
from diffusion_blend.training.config import BaseConfig
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


def test_methods_have_weights_of_their_own(world: World, tmp_path: Path) -> None:
    over = {"methods": ["blend", "soup"], "weights": [[1, 0], [1, 1]], "method_weights": {"soup": [[1, 3]]}}
    ready = sweep(settings(tmp_path / "out", *world, **over))
    assert [(point.method, point.weights) for point in ready.points] == [
        ("blend", (1.0, 0.0)),
        ("blend", (0.5, 0.5)),
        ("soup", (0.25, 0.75)),
    ]
    with pytest.raises(ValueError, match="method_weights names 'code'"):
        sweep(settings(tmp_path / "no", *world, method_weights={"code": [[1, 1]]}))


def test_pictures_per_prompt_and_affine_rewards(world: World, tmp_path: Path) -> None:
    over = {"steps": 2, "images_per_prompt": 2, "batch": 3}
    plain = sweep(settings(tmp_path / "plain", *world, **over)).run()
    scaled = sweep(settings(tmp_path / "scaled", *world, **over, affine={"a": [4.0, -2.0]})).run()
    assert len(plain) == 3 * 2 and [row["number"] for row in plain] == [0, 0, 0, 1, 1, 1]
    assert [row["a"] for row in scaled] == pytest.approx([4 * row["a"] - 2 for row in plain])
    assert [row["b"] for row in scaled] == [row["b"] for row in plain]
    for numbers in ([0.0, 1.0], [1.0]):
        with pytest.raises(ValueError, match="affine.a is"):
            sweep(settings(tmp_path / "no", *world, affine={"a": numbers}))


def test_a_kl_scale_that_a_method_cannot_take_is_left_out_with_a_line(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "diffusion_blend")
    over = {"methods": ["blend", "stochastic"], "kl_scales": [1.0, 1.5]}
    ready = sweep(settings(tmp_path / "out", *world, **over))
    assert [(p.method, p.kl_scale) for p in ready.points] == [("blend", 1.0), ("blend", 1.5), ("stochastic", 1.0)]
    assert [r.message for r in caplog.records if "left out" in r.message] == [
        next(r.message for r in caplog.records if r.message.startswith("stochastic is left out at KL scale 1.5"))
    ]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"methods": ["blend", "soup", "blend"]}, "methods names 'blend' 2 times: give it once"),
        ({"seed": -1}, "seed is -1: it must be a whole number of at least 0"),
        ({"claim_expiry": float("nan")}, "claim_expiry is nan"),
        ({"kl_scales": []}, "at least one adapter, one reward, one method and one KL scale"),
        ({"grid": 1_000_000}, "grid 1000000 with 2 adapters is 1,000,001 preferences"),
        ({"etas": {"a": 2.0}, "methods": ["msdda"]}, "etas.a is 2 beside eta 1: both must be above 0 and at most 1"),
        ({"etas": {"a": 0.5}, "eta": 0.0, "methods": ["msdda"]}, "etas.a is 0.5 beside eta 0"),
        ({"eta": 0.0, "methods": ["code"]}, "code needs steps with noise, and eta is 0"),
        ({"eta": 0.0, "methods": ["rgg"]}, "rgg needs steps with noise, and eta is 0"),
        ({"method_weights": {"blend": []}}, "method_weights.blend is empty"),
        (
            {"method_weights": {"base": [[1, 1]]}, "methods": ["base"]},
            "'base', which is none of the methods with weights",
        ),
        ({"base": BaseConfig(frames=5)}, "base.frames is 5: a sweep compares images and no videos"),
        ({"base": BaseConfig(path="nosuch")}, "base 'nosuch': no such folder or file, and not a hub id"),
        ({"base": BaseConfig(path="/nosuch/x")}, "base '/nosuch/x': no such folder or file"),
        ({"base": BaseConfig(path="nosuch.module:base")}, "there is no module 'nosuch.module' here"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_loaded(
    over: dict[str, Any], message: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(replace(settings(tmp_path / "out", *world), **over))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"adapters": {"a": "gone.safetensors"}}, "adapters.a is 'gone.safetensors': no such file in /"),
        ({"morl": {"0.5,0.5": "gone"}}, "morl.0.5,0.5 is 'gone': no such file"),
        ({"stacked": {"a": "gone", "b": "gone"}}, "stacked.a is 'gone': no such file"),
        ({"distilled": {"0.5,0.5": "gone"}}, "distilled.0.5,0.5 is 'gone': no such file"),
        ({"cross": ["gone"]}, "cross is 'gone': no such file"),
        ({"conditioned": "gone"}, "conditioned is 'gone': no such file"),
        ({"external_scores": ["gone"]}, "external_scores is 'gone': no such file"),
    ],
)
def test_files_that_are_not_there_are_named(over: dict[str, Any], message: str, world: World, tmp_path: Path) -> None:
    check_files(settings(tmp_path / "out", *world))
    with pytest.raises(ValueError, match=message):
        check_files(replace(settings(tmp_path / "out", *world), **over))


def test_noise_scales_for_msdda_do_not_matter_to_other_methods(world: World, tmp_path: Path) -> None:
    """One file of settings serves sweeps with and without noise."""
    check_config(settings(tmp_path / "out", *world, methods=["blend", "soup"], etas={"a": 0.5}, eta=0.0))


def test_wrong_files_and_weights_are_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="morl '1': 1 weights for 2 adapters"):
        sweep(settings(tmp_path / "out", *world, methods=["morl"], morl={"1": "x"}))
    with pytest.raises(ValueError, match=r"a.safetensors is not a table in UTF-8 text"):
        sweep(settings(tmp_path / "out", *world, external_scores=[str(world[1]["a"])]))


def test_a_reward_that_fails_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_failing.py").write_text("def reward(images, prompts):\n    raise KeyError('tone')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = cast("Any", SimpleNamespace(reward_folders={}, allow_download=False, affine={"a": [2.0, 1.0]}))
    rewards = _load_rewards({"a": "own_failing:reward"}, config, Worker(torch.device("cpu"), is_first=True))
    said = r"'own_failing:reward' raised KeyError: 'tone' \(own_failing.py, line 2\)\. Fix the reward and run the command again"
    with pytest.raises(CommandFailed, match=said):
        rewards["a"](torch.zeros(1, 3, 8, 8), ["x"])
