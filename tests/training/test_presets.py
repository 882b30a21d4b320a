"""Defaults run: every algorithm alone and with every preset passes the checks, and what is given wins over a preset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from diffusion_blend.training.algorithms import ALGORITHMS
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.command import main, parse
from diffusion_blend.training.models.family import FAMILIES
from diffusion_blend.training.presets import preset_names, read_preset
from diffusion_blend.training.unused_settings import unused_settings

WORDS = ["--rewards.colourfulness", "1"]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("preset", ["", *preset_names()])
def test_every_algorithm_runs_alone_and_with_every_preset(
    name: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())  # bitsandbytes, for presets that quantise
    config = parse(["--output", str(tmp_path / "run"), *WORDS, "--algorithm.name", name, "--preset", preset])
    check_config(config)
    assert config.algorithm.name == name
    assert unused_settings(config) == {}


def test_ddpo_has_the_published_numbers(tmp_path: Path) -> None:
    """kvablack/ddpo-pytorch, config/base.py, per element of the log-probability; here for 4 x 64 x 64 elements."""
    config = parse(["--output", str(tmp_path), *WORDS, "--algorithm.name", "ddpo"])
    elements = 4 * 64 * 64
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm == 1.0 * elements
    assert config.algorithm.clip_range == pytest.approx(2.718281828 ** (1e-4 * elements) - 1, rel=0.02)


def test_settings_that_are_given_win_over_both_presets(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), *WORDS, "--algorithm.name", "draft", "--preset", "sdxl-24gb"]
    assert parse(words).sampling.samples == read_preset("sdxl-24gb")["sampling"]["samples"]
    file = tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump({"sampling": {"samples": 4}}))
    assert parse([*words, "--config", str(file)]).sampling.samples == 4
    assert parse([*words, "--config", str(file), "--sampling.samples", "2"]).sampling.samples == 2


def test_an_unknown_preset_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "run"), *WORDS, "--preset", "nope"]) == 1
    assert "preset 'nope': choose one of" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "run"), *WORDS, "--algorithm.name", "nope"]) == 1
    assert "algorithm.name is 'nope': choose one of dpok" in capsys.readouterr().err


def test_rwr_with_one_image_a_prompt_is_refused_with_the_reason(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), *WORDS, "--algorithm.name", "rwr", "--algorithm.buffer", "25"]
    with pytest.raises(ValueError, match=r"25 images of 25 prompts.*all weights are 1 and nothing is learned"):
        check_config(parse(words))


def test_a_resumed_run_takes_its_own_settings(tmp_path: Path) -> None:
    """Those of version 0.1, which had no window, stay as they ran."""
    recorded = {"algorithm": {"name": "ddpo"}, "sampling": {"samples": 12}, "optimizer": {"learning_rate": 1e-5}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recorded))
    config = parse(["--output", str(tmp_path), *WORDS, "--resume"])
    assert (config.algorithm.name, config.sampling.samples, config.optimizer.learning_rate) == ("ddpo", 12, 1e-5)
    assert config.sampling.noisy_steps == "all"


@pytest.mark.parametrize("words", [["--help"], ["--output", "x", *WORDS, "--algorithm.name", "nope"]])
def test_help_and_refusals_load_no_heavy_library(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from diffusion_blend.training.command import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'matplotlib'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "heavy []", done.stderr[-2000:]


def test_every_family_is_a_file_that_takes_a_pipeline_apart() -> None:
    folder = Path(__file__).parents[2] / "training" / "models"
    for family in FAMILIES.values():
        assert "\ndef take_apart(" in (folder / f"{family.module}.py").read_text(encoding="utf-8")
