"""Every wrong input is an error that says what to do, before any work is done."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from diffusion_blend.rewards.protocol import score
from diffusion_blend.training.algorithms.requirements import check_passes
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.command import main, parse
from diffusion_blend.training.config import BaseConfig, TrainConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.resume import check_resumed
from own_rewards import not_a_number, wrong_shape
from training_runs import settings

CPU = torch.device("cpu")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command, which must fail; returns its complaint, one line without a traceback."""
    assert main([str(word) for word in words]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_unknown_reward(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = run(capsys, "--output", tmp_path / "out", "--rewards.beauty", 1)
    assert "unknown reward 'beauty'" in error and "image_reward" in error and "module:function" in error
    assert not (tmp_path / "out").exists()


def test_own_rewards_that_cannot_be_imported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("nowhere_at_all:f", "own_rewards:f", "own_rewards:A_NUMBER"):
        error = run(capsys, "--output", tmp_path / "out", "--rewards", json.dumps({name: 1}))
        assert f"reward '{name}'" in error
    assert not (tmp_path / "out").exists()


def test_empty_prompt_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    error = run(
        capsys, "--output", tmp_path / "out", "--rewards.colourfulness", 1, "--prompts.source", tmp_path / "empty.txt"
    )
    assert "no prompts in it; write one per line" in error
    assert not (tmp_path / "out").exists()


def test_unreadable_bases(tmp_path: Path, tiny_sd: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    folder = tmp_path / "folder"
    folder.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    half = tmp_path / "half"
    half.mkdir()
    (half / "model_index.json").write_text((tiny_sd / "model_index.json").read_text())
    for path, message in [
        (tmp_path / "none", "no such folder or file"),
        (tmp_path / "none.safetensors", "no such file"),
        (broken, "not a whole .safetensors file"),
        (folder, "no readable model_index.json"),
        (other, "KolorsPipeline, which this trainer does not support yet; supported are"),
        (half, "is the folder complete"),
        (tmp_path / "old.ckpt", "pickled checkpoints can run code"),
        ("nowhere_at_all:load", "cannot import it as module:function"),
        ("own_rewards:not_a_base", "returned int: it must return a diffusers_model.Base"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_base(BaseConfig(path=str(path)), CPU, allow_download=False)


def test_a_hub_id_that_is_not_here_asks_for_consent() -> None:
    with pytest.raises(
        ValueError, match="--allow_download true to fetch it from https://huggingface.co/nobody/nothing"
    ):
        load_base(BaseConfig(path="nobody/nothing"), CPU, allow_download=False)


def test_a_single_file_of_another_kind(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {"transformer_blocks.0.attn.to_q.bias": torch.ones(1), "adaln_single.linear.bias": torch.ones(1)},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(ValueError, match="does not support yet|looks like|cannot build a pipeline"):
        load_base(BaseConfig(path=str(tmp_path / "other.safetensors")), CPU, allow_download=False)


def test_resolution_and_precision(tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match="base.resolution 7: it must be a multiple of 2"):
        load_base(BaseConfig(path=str(tiny_sd), resolution=7), CPU, allow_download=False)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        load_base(BaseConfig(path=str(tiny_sd), precision="fp16"), CPU, allow_download=False)


def test_output_that_exists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"precious")
    error = run(capsys, "--output", tmp_path, "--rewards.colourfulness", 1)
    assert "already exists" in error and "--resume true, which goes on with the run in it, or starts it anew" in error
    assert (tmp_path / "adapter.safetensors").read_bytes() == b"precious"


def test_a_run_without_a_checkpoint_starts_anew_and_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    import dataclasses

    output = tmp_path / "run"
    check_resumed(settings(output, resume=True), 1)  # the folder is not there yet
    output.mkdir()
    (output / ".config.yaml.host-1.partial").touch()
    check_resumed(settings(output, resume=True), 1)
    (output / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"nothing to resume: .*run is not empty and holds no run"):
        check_resumed(settings(output, resume=True), 1)
    (output / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings(output))))
    check_resumed(settings(output, resume=True), 1)
    with pytest.raises(ValueError, match=r"cannot resume .*adapter.rank was 2, is 8"):
        check_resumed(settings(output, resume=True, adapter={"rank": 8}), 1)
    (output / "adapter.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds adapter.safetensors and no checkpoint"):
        check_resumed(settings(output, resume=True), 1)
    (output / "config.yaml").write_text("[")
    assert "cannot read the settings of the run" in run(capsys, "--output", output, "--resume")


def test_a_resumed_run_has_its_required_settings_too(tmp_path: Path) -> None:
    import dataclasses

    recorded = settings(tmp_path, rewards={"colourfulness": 2.0}, run={"iterations": 7})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(recorded)))
    resumed = parse(["--output", str(tmp_path), "--resume", "--run.save_every", "3"])
    assert (resumed.rewards, resumed.run.iterations, resumed.run.save_every) == ({"colourfulness": 2.0}, 7, 3)
    assert resumed.resume and resumed.output == str(tmp_path)
    with pytest.raises(SystemExit):
        parse(["--output", str(tmp_path)])  # a new run has to name them


def test_incompatible_resume(tmp_path: Path) -> None:
    import dataclasses

    from diffusion_blend.training.checkpoints import save_checkpoint

    before = settings(tmp_path)
    state = {"config": dataclasses.asdict(before), "processes": 1}
    save_checkpoint(tmp_path / "checkpoints", 3, state, b"", 1)
    check_resumed(settings(tmp_path, resume=True, run={"iterations": 99}), 1)  # longer is fine
    with pytest.raises(ValueError, match=r"adapter.rank was 2, is 8.*algorithm.kl_weight was 0.01, is 0.5"):
        check_resumed(settings(tmp_path, resume=True, adapter={"rank": 8}, algorithm={"kl_weight": 0.5}), 1)
    with pytest.raises(ValueError, match="had 1 processes, now there are 2"):
        check_resumed(settings(tmp_path, resume=True), 2)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"sampling": {"samples": 5, "batch": 2}}, "sampling.samples 5 is not a multiple of sampling.batch 2"),
        ({"sampling": {"eta": 0.0}}, "sampling.eta is 0.0"),
        ({"sampling": {"eta": 1.1}}, "at most 1"),
        ({"sampling": {"steps": 0}}, "sampling.steps is 0"),
        ({"algorithm": {"name": "dppo"}}, "algorithm.name is 'dppo': choose one of dpok, ddpo, grpo, nft, rwr, draft"),
        ({"algorithm": {"kl_weight": -1.0}}, "algorithm.kl_weight is -1.0: it must be a finite number of at least 0"),
        ({"algorithm": {"kl_weight": float("nan")}}, "algorithm.kl_weight is nan"),
        ({"algorithm": {"clip_range": 0.0}}, "algorithm.clip_range is 0.0"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate is 0.0"),
        ({"optimizer": {"accumulate": 100}}, "lower optimizer.accumulate or raise sampling.samples"),
        ({"run": {"keep": 0}}, "run.keep is 0"),
        ({"run": {"ema": 1.0}}, "run.ema is 1.0: it must be a finite number of at least 0 and at most 0.9999"),
        ({"adapter": {"alpha": -2.0}}, "adapter.alpha is -2.0: it must be a finite number above 0"),
        ({"reward_timeout": -1.0}, "reward_timeout is -1.0"),
        ({"rewards": {}}, "no rewards"),
        ({"rewards": {"a": 0.0}}, "nothing would be trained"),
        ({"rewards": {"a": float("inf")}}, "weight of reward 'a' is inf"),
        ({"heldout": ["redness"]}, "both trained and held out"),
    ],
)
def test_settings_that_cannot_work(over: dict[str, Any], message: str, tmp_path: Path) -> None:
    check_config(settings(tmp_path))
    with pytest.raises(ValueError, match=message):
        check_config(settings(tmp_path, **over))


def test_ddpo_epochs_must_come_out_even() -> None:
    check_passes("ddpo", "denoising steps", 300, 60)
    with pytest.raises(ValueError, match=r"ddpo goes through all 300 denoising steps .* in optimizer steps of 24"):
        check_passes("ddpo", "denoising steps", 300, 24)


def test_rewards_that_misbehave() -> None:
    images = torch.rand(3, 3, 4, 4)
    with pytest.raises(ValueError, match="'bad' gave nan for the prompt 'a'"):
        score({"bad": not_a_number}, images, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'bad' returned shape \(\) for 3 images"):
        score({"bad": wrong_shape}, images, ["a", "b", "c"])


def test_settings_go_to_yaml_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", "x", "--rewards", '{"aesthetic": 0.5, "image_reward": 1.0}', "--sampling.steps", "7"]
    with pytest.raises(SystemExit):
        parse([*words, "--print_config"])
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    assert yaml.safe_load(file.read_text())["sampling"]["steps"] == 7
    assert parse(["--config", str(file)]) == parse(words)
    assert parse(["--config", str(file), "--sampling.steps", "9"]).sampling.steps == 9
    assert parse([*words, "--resume"]).resume and not parse(words).resume
    assert isinstance(parse(words), TrainConfig)


def test_every_setting_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert "sampling.steps" in setting_names(TrainConfig) and "heldout" in setting_names(TrainConfig)
    assert [name for name in setting_names(TrainConfig) if not help_of(name, shown)] == []
    bare = "  --sampling.steps STEPS\n" + 24 * " " + "(type: int)\n  --heldout A           (type: str)\n"
    assert help_of("sampling.steps", bare) == help_of("heldout", bare) == ""


def setting_names(kind: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    names: list[str] = []
    for name, hint in get_type_hints(kind).items():
        inner = dataclasses.is_dataclass(hint)
        names += setting_names(hint, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return names


def help_of(name: str, shown: str) -> str:
    """An option's description, which begins in column 24, without the type and the default."""
    found = re.search(rf"^  --{re.escape(name)}[ ,].*\n(?: {{24}}.*\n)*", shown, re.MULTILINE)
    assert found, f"there is no option {name}"
    first, *others = found.group().splitlines()
    text = " ".join([first[24:] if first[22:24] == "  " else "", *(line.strip() for line in others)])
    return text.partition("(type: ")[0].strip()


def test_a_base_is_not_split_in_vain(tmp_path: Path, tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match="accelerate launch --num_processes N"):
        load_base(BaseConfig(path=str(tiny_sd), shard=True), torch.device("cpu"), allow_download=False)
    for over, reason in (
        ({"quantise": "nf4"}, "do not go together"),
        ({"path": "mine:base"}, "a function of your own"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_config(settings(tmp_path, base={"path": str(tiny_sd), "shard": True, **over}))
