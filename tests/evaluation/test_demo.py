"""The demo: its page holds what the sweep made, and needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_blend.blending.groups import KEY
from diffusion_blend.blending.simplex import TRIANGLE_CORNERS, triangle_point
from diffusion_blend.evaluation.demo import command
from diffusion_blend.evaluation.demo.command import PROMPTS, find_adapters, find_stacked, main
from diffusion_blend.evaluation.sweep.checks import check_config
from diffusion_blend.miniature.model import make_pipeline
from diffusion_blend.miniature.renderer import SIZE
from diffusion_blend.training.config import AdapterConfig
from diffusion_blend.training.models.bases import base_from_pipeline
from diffusion_blend.training.models.diffusers_model import DiffusersModel

REWARDS = ("warmth", "softness", "brightness")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of an untrained model with three random adapters and a group of three, two pictures a point."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("demo")
    model = folder / "model"
    make_pipeline(folder / "tokenizer", seed=0).save_pretrained(model)
    (folder / "adapters").mkdir()
    (folder / "stacked").mkdir()
    settings = {"sampling": {"steps": 2, "guidance_scale": 1.0, "eta": 0.5}}
    metadata = {"diffusion_blend.kl_weight": "0.1", "diffusion_blend.config": json.dumps(settings)}
    for seed, name in enumerate(REWARDS):
        base = base_from_pipeline(make_pipeline(folder / "tokenizer", 0), "m", SIZE, torch.device("cpu"))
        adapter = DiffusersModel(base, AdapterConfig(rank=2, alpha=2.0), seed)
        with torch.no_grad():
            for parameter in adapter.trainable().values():
                parameter.add_(0.1)
        (folder / f"adapters/{name}.safetensors").write_bytes(adapter.export(metadata))
        with torch.no_grad():
            for parameter in adapter.trainable().values():
                parameter.mul_(-2)
        entry = {"kind": "stacked", "id": "one", "member": seed, "rewards": list(REWARDS)}
        grouped = adapter.export({**metadata, KEY: json.dumps(entry)})
        (folder / f"stacked/{name}.safetensors").write_bytes(grouped)
    words = ["--out", str(folder / "out"), "--model", str(model), "--adapters", str(folder / "adapters")]
    words += ["--stacked", str(folder / "stacked"), "--rewards", *REWARDS, "--divisions", "2", "--images", "2"]
    assert main(words) == 0
    return folder / "out"


def world(folder: Path) -> dict[str, Any]:
    [text] = re.findall(
        r'<script id="world" type="application/json">(.*?)</script>', (folder / "index.html").read_text()
    )
    return json.loads(text)


def test_the_page_shows_the_sweeps_pictures_and_means(shown: Path) -> None:
    page = world(shown)
    assert page["names"] == list(REWARDS) and page["prompts"] == list(PROMPTS[:2])
    assert set(page["methods"]) == set(command.WITH_STACKED)
    places = {tuple(weights): place for place, weights in enumerate(page["weights"])}
    calls = {method: [cell["calls"] for cell in told["cells"]] for method, told in page["methods"].items()}
    assert [calls[method][places[0.5, 0.5, 0]] for method in ("blend", "stacked", "soup", "base")] == [2, 1, 1, 1]
    assert sorted(map(tuple, page["weights"])) == sorted(
        [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    )
    samples = (shown / "sweep/samples.csv").read_text().splitlines()
    columns = samples[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in samples[1:]]
    files = {path.read_bytes() for path in (shown / "sweep/images").rglob("*.png")}
    for method in ("blend", "stacked", "soup"):
        for weights, cell in zip(page["weights"], page["methods"][method]["cells"], strict=True):
            own = [
                row
                for row in rows
                if row["method"] == method and [float(row[f"w_{name}"]) for name in REWARDS] == weights
            ]
            expected = [np.mean([float(row[name]) for row in own]) for name in REWARDS]
            assert cell["means"] == pytest.approx(expected)
            shots = [page["store"][index] for index in cell["pictures"]]
            assert len(shots) == 2 and {base64.b64decode(shot.partition(",")[2]) for shot in shots} <= files


def test_the_page_needs_no_other_file_and_no_network(shown: Path) -> None:
    class Links(HTMLParser):
        found: tuple[str, ...] = ()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += tuple(value or "" for name, value in attrs if name in ("src", "href"))

    links = Links()
    text = (shown / "index.html").read_text()
    links.feed(text)
    assert len(links.found) == 2 and all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert "$" not in re.sub(r"data:[^\"]*", "", text)  # nothing of the template is left open


def test_the_demo_samples_as_its_adapters_were_trained(shown: Path) -> None:
    settings = json.loads((shown / "sweep/settings.json").read_text())
    assert (settings["steps"], settings["eta"], settings["guidance_scale"]) == (2, 0.5, 1.0)


def test_a_group_is_shown_where_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "STACKED", tmp_path)

    def found(*words: str) -> dict[str, str]:
        return find_stacked(command._parser().parse_args(list(words)), REWARDS)

    assert found() == {}
    for name in REWARDS:
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert list(found()) == list(REWARDS)
    assert found("--adapters", "mine") == {}  # the shipped group belongs beside the shipped adapters
    assert list(found("--adapters", "mine", "--stacked", str(tmp_path))) == list(REWARDS)
    (tmp_path / "softness.safetensors").unlink()
    assert found() == {}
    with pytest.raises(ValueError, match="no adapter for softness in .*miniature adapters --stacked"):
        found("--stacked", str(tmp_path))


def test_the_triangle_is_equilateral_and_its_middle_is_in_the_middle() -> None:
    corners = [triangle_point(tuple(float(i == j) for j in range(3))) for i in range(3)]
    np.testing.assert_allclose(corners, TRIANGLE_CORNERS)
    sides = [float(np.linalg.norm(np.subtract(corners[i], corners[i - 1]))) for i in range(3)]
    assert sides == pytest.approx([1, 1, 1])
    middle = triangle_point((1 / 3, 1 / 3, 1 / 3))
    assert [float(np.linalg.norm(np.subtract(middle, corner))) for corner in corners] == pytest.approx([3**-0.5] * 3)


def test_adapters_are_chosen_or_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("warmth", "brightness", "softness", "contrast"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert list(find_adapters(tmp_path, None)) == ["brightness", "warmth", "contrast"]
    assert list(find_adapters(tmp_path, ["warmth", "contrast", "softness"])) == ["warmth", "contrast", "softness"]
    with pytest.raises(ValueError, match="no adapter for compressibility"):
        find_adapters(tmp_path, ["softness", "warmth", "compressibility"])
    with pytest.raises(ValueError, match="--rewards softness softness warmth names a reward twice"):
        find_adapters(tmp_path, ["softness", "softness", "warmth"])
    (tmp_path / "warmth.safetensors").unlink()
    (tmp_path / "brightness.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapter for .*warmth"):
        find_adapters(tmp_path, None)
    assert main(["--out", str(tmp_path / "out"), "--adapters", str(tmp_path)]) == 1
    assert "docs/miniature.md" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["--output", str(tmp_path / "out"), "--grid", "0"]) == 1
    assert "--grid is 0" in capsys.readouterr().err


def test_the_sweeps_settings_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped base is no path that lies in a checkout by chance."""
    monkeypatch.chdir(tmp_path)
    options = command._parser().parse_args(["--output", "out"])
    adapters = find_adapters(command.SHIPPED, None)
    check_config(command._settings(options, adapters, {}, tmp_path / "prompts.txt"))
