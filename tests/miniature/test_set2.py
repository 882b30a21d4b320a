"""Miniature set 2: its command makes every part once, and its sweeps name the files that the command makes."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from diffusion_blend.evaluation.sweep.command import parse
from diffusion_blend.evaluation.sweep.prepare import weights_of
from diffusion_blend.miniature.adapters import mixture_name, read_mixture
from diffusion_blend.miniature.command import main
from diffusion_blend.miniature.set2 import REWARDS, chosen_parts, make, mixtures, parts
from diffusion_blend.training.config import TrainConfig
from safetensors import safe_open

MINIATURE = Path(__file__).parents[2] / "miniature"
TRAINING = ["--sampling.samples", "2", "--sampling.batch", "2", "--sampling.steps", "2", "--run.iterations", "1"]
TRAINING += ["--run.watch_every", "0", "--adapter.rank", "2"]
BAKING = ["--steps", "1", "--trajectories", "1", "--iterations", "1", "--batch", "1", "--rank", "2"]


def header(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as content:
        return content.metadata()


def test_every_kind_of_part_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With tiny numbers; three trainings are enough for the fits, the group and the other KL weights have one each."""
    torch.set_num_threads(1)
    distilled = "distilled/colourfulness-0.5_softness-0.5"
    wanted = ["adapters", "stacked", "cross", distilled, "half_kl/softness"]
    chosen = chosen_parts(parts(tmp_path, 3, TRAINING, BAKING), wanted)
    assert len(chosen) == 7
    make(chosen)
    said = capsys.readouterr().out
    assert "[1 of 7] adapters/colourfulness: an adapter trained for 1 colourfulness at KL weight 0.02" in said
    groups = [json.loads(header(tmp_path / f"stacked/{name}.safetensors")["diffusion_blend.group"]) for name in REWARDS]
    assert [(group["kind"], group["member"]) for group in groups] == [("stacked", 0), ("stacked", 1), ("stacked", 2)]
    assert len({group["id"] for group in groups}) == 1
    config = json.loads(header(tmp_path / "half_kl/softness.safetensors")["diffusion_blend.config"])
    assert (config["algorithm"]["kl_weight"], config["run"]["seed"]) == (0.01, 3)
    baked = json.loads(header(tmp_path / f"{distilled}.safetensors")["diffusion_blend.baked"])
    assert [(one["file"], one["weight"]) for one in baked["adapters"]] == [
        ("colourfulness.safetensors", 0.5),
        ("softness.safetensors", 0.5),
    ]
    assert (baked["eta"], baked["guidance"]) == (1.0, 1.0)  # as the adapters were trained
    pairs = [header(tmp_path / f"cross/set2-{i}-{j}.cross.safetensors") for i, j in combinations((1, 2, 3), 2)]
    assert [json.loads(pair["diffusion_blend.group"])["pair_names"] for pair in pairs] == [
        list(pair) for pair in combinations(REWARDS, 2)
    ]
    times = {file: file.stat().st_mtime_ns for part in chosen for file in part.files}
    make(chosen)
    assert capsys.readouterr().out.count("is there already") == 7
    assert times == {file: file.stat().st_mtime_ns for part in chosen for file in part.files}


def test_a_bake_without_its_adapters_and_an_unknown_part_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["set2", "--output", str(tmp_path / "out"), "--only", "cross"]) == 1
    assert "cross is baked from files that are not there" in capsys.readouterr().err
    assert main(["set2", "--output", str(tmp_path / "out"), "--only", "beauty"]) == 1
    assert (
        "--only beauty: no part of set 2; give adapters, stacked, cross, conditioned, mixtures"
        in capsys.readouterr().err
    )
    assert main(["set2", "--output", str(tmp_path / "new"), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3 + 1 + 1 + 1 + 12 + 6 + 6 + 6
    assert "twice_kl/softness: an adapter trained for 1 softness at KL weight 0.04" in listed
    assert not (tmp_path / "new").exists()


def test_a_group_has_twice_the_iterations_of_its_adapters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []

    def stop(config: TrainConfig) -> Path:
        asked.append(config)
        raise ValueError("stopped")

    monkeypatch.setattr("diffusion_blend.training.train.train", stop)
    for part in chosen_parts(parts(tmp_path), ["adapters/softness", "stacked"]):
        with pytest.raises(ValueError, match="stopped"):
            part.make()
    alone, group = asked
    assert (alone.run.iterations, group.run.iterations) == (120, 720)
    assert [config.algorithm.stacked for config in asked] == [False, True]
    assert [(config.adapter.rank, config.algorithm.kl_weight) for config in asked] == [(16, 0.02)] * 2
    assert [name.rpartition(":")[2] for name in group.rewards] == [
        "colourfulness",
        "smooth_compressibility",
        "softness",
    ]


def test_a_group_takes_single_rewards_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "--stacked", "--output", str(tmp_path), "softness", "warmth:1,contrast:1"]) == 1
    assert "--stacked trains an adapter for each reward, so 'warmth:1,contrast:1'" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["set2_scale_2.yaml"], ["set2_scale_half.yaml"]])
def test_the_sweeps_name_the_parts(extra: list[str], tmp_path: Path) -> None:
    files = ["set2_sweep.yaml", *extra]
    words = [word for file in files for word in ("--config", str(MINIATURE / file))]
    config = parse([*words, "--output", str(tmp_path)])
    made = {str(file) for part in parts(Path("runs/set2")) for file in part.files}
    named = [*config.adapters.values(), *config.stacked.values(), *config.cross]
    named += [*config.morl.values(), *config.distilled.values()]
    assert set(named) <= made and list(config.adapters) == list(REWARDS)
    for method, given in (("morl", config.morl), ("distilled", config.distilled)):
        for weights, key in weights_of(method, given, config).items():
            shares = {name: f"{w:g}" for name, w in zip(REWARDS, weights, strict=True) if w > 0}
            name = (
                "_".join(f"{reward}-{share}" for reward, share in shares.items())
                if len(shares) > 1
                else next(iter(shares))
            )
            assert Path(given[key]).stem == name
    if not extra:
        assert (len(config.morl), len(config.distilled)) == (12, 6)
        earlier = yaml.safe_load((MINIATURE / "mixtures.yaml").read_text(encoding="utf-8"))["morl"]
        assert set(config.morl) > set(earlier)
        assert set(config.methods) > {
            "stacked",
            "cross",
            "distilled",
            "morl",
            "composite",
            "switch",
            "msdda",
            "early",
            "corrected",
        }
    else:
        assert (len(config.morl), config.distilled) == (6, {})
        assert config.kl_scales == [2.0 if extra == ["set2_scale_2.yaml"] else 0.5]
        folder = "half_kl" if config.kl_scales == [2.0] else "twice_kl"  # KL scale s is KL weight / s
        assert {Path(file).parent.name for file in config.morl.values()} == {folder}


def test_the_mixtures_are_those_in_quarters() -> None:
    found = mixtures()
    assert len(found) == 12 and all(sum(mixture.values()) == 1 and len(mixture) > 1 for mixture in found)
    assert all(4 * share == int(4 * share) for mixture in found for share in mixture.values())


def test_the_sweep_of_the_pair_names_what_its_commands_make(tmp_path: Path) -> None:
    file = MINIATURE / "pair_sweep.yaml"
    config = parse(["--config", str(file), "--output", str(tmp_path)])
    made = {"miniature/weights/alignment/alignment.safetensors"}  # shipped
    for command in file.read_text(encoding="utf-8").replace("\\\n#", "").split("diffusion-blend ")[1:]:
        words = [word for word in command.splitlines()[0].split() if word not in ("--without_gradients", "--stacked")]
        if words[1] == "adapters":
            made |= {f"{words[3]}/{mixture_name(read_mixture(text))}.safetensors" for text in words[4:]}
    assert {*config.adapters.values(), *config.stacked.values(), *config.morl.values()} == made
    for weights, key in weights_of("morl", config.morl, config).items():
        mixture = dict(zip(config.adapters, weights, strict=True))
        assert Path(config.morl[key]).stem == mixture_name(mixture)
