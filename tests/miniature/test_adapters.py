"""The command that trains the miniature's adapters: mixtures are read strictly, and each gets its own run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.miniature.adapters import (
    mixture_name,
    read_mixture,
    train_adapters,
    train_conditioned,
    train_group,
)
from diffusion_blend.miniature.command import main
from safetensors import safe_open


@pytest.mark.parametrize(
    ("text", "mixture", "name"),
    [
        ("softness", {"softness": 1.0}, "softness"),
        ("softness:1,alignment:3", {"softness": 0.25, "alignment": 0.75}, "softness-0.25_alignment-0.75"),
        ("alignment,softness", {"alignment": 0.5, "softness": 0.5}, "alignment-0.5_softness-0.5"),
    ],
)
def test_mixtures_are_shares_of_one(text: str, mixture: dict[str, float], name: str) -> None:
    assert read_mixture(text) == mixture
    assert mixture_name(mixture) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beauty", "'beauty' is no reward of this world"),
        ("softness:0", "the share of softness is '0'"),
        ("softness:-1", "the share of softness is '-1'"),
        ("softness:nan", "the share of softness is 'nan'"),
        ("softness,softness:2", "names 'softness' twice"),
    ],
)
def test_bad_mixtures_are_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        read_mixture(text)
    assert main(["adapters", "--out", str(tmp_path), text]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("train", [train_group, train_conditioned])
def test_a_reward_that_is_named_twice_is_refused_before_any_work(train: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward 'softness' is named twice"):
        train(["softness", "warmth", "softness"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_mixture_gets_its_adapter(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    few = ["--sampling.samples", "2", "--sampling.batch", "2", "--sampling.steps", "2", "--run.iterations", "1"]
    few += ["--run.watch_every", "0"]
    mixtures = [read_mixture("softness"), read_mixture("softness,compressibility")]
    files = train_adapters(mixtures, tmp_path, few)
    assert [file.name for file in files] == ["softness.safetensors", "softness-0.5_compressibility-0.5.safetensors"]
    with safe_open(str(files[1]), framework="pt") as content:
        header = content.metadata()
    told = json.loads(header["diffusion_blend.config"])
    assert json.loads(header["diffusion_blend.reward"]) == mixtures[1]  # what is wanted, not what stood in for it
    world = "diffusion_blend.miniature.rewards"
    assert told["rewards"] == {f"{world}:softness": 0.5, f"{world}:smooth_compressibility": 0.5}
    assert train_adapters(mixtures[:1], tmp_path, few) == files[:1]  # goes on where it stopped: nothing to do


@pytest.mark.parametrize(
    ("rewards", "settings"),
    [
        (["alignment", "compressibility"], ("adapter.yaml",)),
        (["compressibility", "softness"], ("adapter.yaml", "alignment.yaml")),
    ],
)
def test_a_group_without_gradients_is_trained_by_nft_on_the_rewards_themselves(
    rewards: list[str], settings: tuple[str, ...], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    few = ["--sampling.samples", "4", "--sampling.batch", "4", "--sampling.steps", "2", "--run.iterations", "1"]
    few += ["--run.watch_every", "0", "--algorithm.group", "2"]
    files = train_group(rewards, tmp_path, few, settings)
    assert [file.stem for file in files] == rewards
    with safe_open(str(files[0]), framework="pt") as content:
        config = json.loads(content.metadata()["diffusion_blend.config"])
    assert config["algorithm"]["name"] == "nft"
    assert config["algorithm"]["stacked"]
    assert config["rewards"] == {f"diffusion_blend.miniature.rewards:{reward}": 1.0 for reward in rewards}
