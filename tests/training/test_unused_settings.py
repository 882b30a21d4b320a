"""Settings without effect are named, only those that were given, and no shipped configuration has any."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import diffusion_blend
import pytest
import yaml
from diffusion_blend.training.algorithms import ALGORITHMS
from diffusion_blend.training.command import parse
from diffusion_blend.training.config import AlgorithmConfig, TrainConfig, ValueConfig
from diffusion_blend.training.resume import flat
from diffusion_blend.training.unused_settings import IDLE, USERS, unused_settings, warn_of_unused

ROOT = Path(diffusion_blend.__file__).parent
WORDS = ["--output", "run", "--rewards.colourfulness", "1"]
SHIPPED = [
    file
    for file in sorted([*ROOT.glob("miniature/*.yaml"), *ROOT.glob("configs/**/*.yaml")])
    if "algorithm" in (yaml.safe_load(file.read_text()) or {})
]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sampling.pool", "samples"], {"sampling.pool"}),
        (["--algorithm.name", "rwr", "--sampling.pool", "samples"], set()),
        (["--algorithm.name", "ddpo", "--algorithm.kl_weight", ".5"], {"algorithm.kl_weight"}),
        (["--algorithm.name", "nft", "--run.stop_kl", "3", "--normalise_rewards"], {"run.stop_kl", "normalise_rewards"}),
        (["--algorithm.name", "grpo", "--run.stop_kl", "3"], set()),
        (["--algorithm.name", "grpo", "--run.stop_kl", "3", "--algorithm.kl_weight", "0"], {"run.stop_kl"}),
        (["--algorithm.name", "draft", "--sampling.window_steps", "2"], {"sampling.window_steps"}),
        (["--value.updates", "0", "--value.batch", "8"], {"value.batch"}),
        (["--sampling.negative_prompt", "blurred", "--sampling.guidance_scale", "1"], {"sampling.negative_prompt"}),
        (["--sampling.negative_prompt", "blurred"], set()),
        (["--optimizer.decay_iterations", "9"], {"optimizer.decay_iterations"}),
        (["--rewards_end_iteration", "9"], {"rewards_end_iteration"}),
        (["--run.watch_every", "0", "--run.watch_samples", "4", "--heldout", "[x:y]"], {"run.watch_samples", "heldout"}),
        (["--prompts.seed", "3"], {"prompts.seed"}),
        (["--prompts.seed", "3", "--prompts.count", "4"], set()),
        (["--base.path", "own:base", "--base.precision", "bf16", "--base.config", "x"], {"base.precision", "base.config"}),
        (["--base.path", "own:base", "--preset", "sdxl-24gb"], set()),
    ],
)  # fmt: skip
def test_settings_without_effect_are_found(words: list[str], named: set[str]) -> None:
    assert set(unused_settings(parse([*WORDS, *words]))) == named


def test_the_warning_names_each_setting_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "diffusion_blend"):
        warn_of_unused(parse([*WORDS, "--sampling.pool", "x", "--prompts.seed", "1"]))
    assert caplog.messages == [
        "These settings have no effect with algorithm.name dpok: sampling.pool (only for rwr); "
        "prompts.seed (prompts.count 0 takes all prompts). Leave them out, or choose another algorithm.name"
    ]


def test_every_setting_of_the_algorithms_is_listed() -> None:
    names = {f"algorithm.{field.name}" for field in dataclasses.fields(AlgorithmConfig)}
    names |= {f"value.{field.name}" for field in dataclasses.fields(ValueConfig)}
    assert names - {"algorithm.name", "algorithm.stacked", "algorithm.separate"} <= set(USERS)
    known = dict(flat(dataclasses.asdict(TrainConfig("", {}))))
    assert set(USERS) | set(IDLE) <= set(known)
    assert {name for users in USERS.values() for name in users} == set(ALGORITHMS)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_have_no_setting_without_effect(file: Path) -> None:
    assert unused_settings(parse([*WORDS, "--config", str(file)])) == {}
