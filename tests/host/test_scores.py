"""Scores in the host equal the trainer's on the same pictures. Nothing is downloaded, no network stays, messages are plain."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import diffusion_blend
import numpy as np
import pytest
import tiny_clip
import torch
from diffusion_blend.miniature.rewards import REWARDS as COMPUTED
from diffusion_blend.miniature.rewards import UNITS
from diffusion_blend.nodes.engine import reward_models
from diffusion_blend.nodes.engine.reward_models import REWARD_OPTIONS
from diffusion_blend.nodes.engine.score_table import Scores
from diffusion_blend.nodes.scores import LoadRewardModel, ScoreImages
from diffusion_blend.rewards.catalogue import CATALOGUE, MOVED
from diffusion_blend.rewards.command import ScoreConfig
from diffusion_blend.rewards.scoring import score_files
from PIL import Image

PROMPT = "a red cat"


def load(reward, model_folder="automatic", allow_download=False):
    return LoadRewardModel.execute(reward, model_folder, allow_download).args[0]


def score(images, reward, prompt=PROMPT, name="", scores=None):
    return ScoreImages.execute(images, reward, prompt, name, scores).args


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The host's models folder, empty."""
    import folder_paths
    import huggingface_hub.constants

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "models" / "diffusion_blend"


@pytest.fixture
def pictures(tmp_path):
    """Ten PNG files, and the host's IMAGE of them."""
    generator = np.random.default_rng(3)
    arrays = generator.integers(0, 256, (10, 48, 40, 3), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(10)]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file)
    return files, torch.from_numpy(np.stack(arrays).astype(np.float32) / 255.0)  # as the host's Load Image does


def by_the_trainer(files, reward, tmp_path, folder=None):
    """Score the files with ``diffusion-blend score``."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    config = ScoreConfig(
        images=list(map(str, files)),
        prompts=str(tmp_path / "prompt.txt"),
        rewards=[reward],
        reward_folders={} if folder is None else {reward: str(folder)},
    )
    return [row[reward] for row in score_files(config)]


def test_every_reward_is_offered():
    assert list(REWARD_OPTIONS) == [*CATALOGUE, "vila", *(f"miniature.{name}" for name in COMPUTED)]


@pytest.mark.parametrize("reward", ["jpeg_compressibility", "jpeg_incompressibility", "colourfulness"])
def test_scores_are_the_trainers(reward, pictures, tmp_path, models):
    files, images = pictures
    table, _ = score(images, load(reward))
    assert table.names == (reward,)
    assert list(table.columns[0]) == by_the_trainer(files, reward, tmp_path)
    assert len(set(table.columns[0])) > 3


@pytest.mark.parametrize("chosen", ["automatic", "clip_score"])
def test_scores_of_a_network_are_the_trainers(chosen, pictures, tmp_path, models):
    files, images = pictures
    models.mkdir(parents=True)
    tiny_clip.write(models / "clip_score")
    table, _ = score(images, load("clip_score", chosen))
    expected = by_the_trainer(files, "clip_score", tmp_path, models / "clip_score")
    assert table.columns[0] == pytest.approx(expected, rel=1e-5)
    assert np.std(expected) > 1e-3


def test_the_miniatures_rewards_by_hand(models):
    images = torch.zeros(3, 8, 8, 3)
    images[0, ..., 0] = 1.0  # red
    images[1] = 1.0  # white
    red, white, black = score(images, load("miniature.warmth"))[0].columns[0]
    assert red > 0 and white == black == 0
    brightness = score(images, load("miniature.brightness"))[0]
    assert brightness.names == ("brightness",)
    red, white, black = brightness.columns[0]
    assert red / white == pytest.approx(0.299) and white > 0 and black == 0
    assert score(images, load("miniature.softness"))[0].columns[0] == (0.0, 0.0, 0.0)


def test_a_chain_keeps_every_column_and_every_image(models):
    images = torch.rand(11, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    first, _ = score(images, load("miniature.warmth"))
    both, summary = score(images, load("miniature.brightness"), name="light", scores=first)
    assert both.names == ("warmth", "light")
    warmth = UNITS["warmth"] * (images[..., 0] - images[..., 2]).mean((1, 2))
    assert both.columns[0] == pytest.approx(warmth.tolist(), abs=1e-5)
    luma = UNITS["brightness"] * (images[..., :3] * torch.tensor([0.299, 0.587, 0.114])).sum(-1).mean((1, 2))
    assert both.columns[1] == pytest.approx(luma.tolist(), abs=1e-5)
    rows = [line.split() for line in summary.splitlines()]
    assert rows[0] == ["image", "warmth", "light"]
    assert [row[0] for row in rows[1:]] == [*map(str, range(11)), "mean"]
    assert [float(value) for value in rows[4][1:]] == pytest.approx([both.columns[0][3], both.columns[1][3]], abs=1e-4)
    assert float(rows[-1][2]) == pytest.approx(float(luma.mean()), abs=1e-4)


def test_the_network_is_the_hosts_to_load_and_unload(pictures, models):
    """The host counts the network's memory, and the network works again after the host has moved it off the device."""
    import comfy.model_management as management

    models.mkdir(parents=True)
    tiny_clip.write(models / "clip_score")
    reward = load("clip_score")
    first, _ = score(pictures[1], reward)
    loaded = [entry for entry in management.current_loaded_models if entry.model is reward.patcher]
    assert len(loaded) == 1
    size = sum(parameter.numel() * parameter.element_size() for parameter in reward.reward.network.parameters())
    assert loaded[0].model_memory() == pytest.approx(size, rel=0.01)
    management.unload_all_models()
    assert not [entry for entry in management.current_loaded_models if entry.model is reward.patcher]
    assert score(pictures[1], reward)[0] == first


def test_scoring_leaves_the_diffusion_model_alone(pictures, models, sd15):
    models.mkdir(parents=True)
    tiny_clip.write(models / "clip_score")
    before = sd15.sample(sd15.model)
    score(pictures[1], load("clip_score"))
    assert torch.equal(sd15.sample(sd15.model), before)


def test_an_interrupt_stops_the_scoring(pictures, models):
    import comfy.model_management as management

    reward = load("colourfulness")
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        score(pictures[1], reward)
    assert len(score(pictures[1], reward)[0]) == 10


@pytest.mark.parametrize("name", MOVED)
def test_a_reward_that_runs_outside_comfyui_only_is_refused_with_a_way_that_the_node_has(name, models):
    with pytest.raises(ValueError, match=f"{name} does not run in ComfyUI: .*Choose another reward here") as refused:
        load(name)
    folder = Path(diffusion_blend.__path__[0]) / MOVED[name].folder
    assert f"{MOVED[name].folder}/README.md in this extension's folder" in str(refused.value)
    assert "diffusion-blend score" in (folder / "README.md").read_text(encoding="utf-8")
    assert MOVED[name].function not in str(refused.value)  # the node takes no function


@pytest.mark.parametrize(
    "reward", [name for name in CATALOGUE if name not in ("colourfulness",) and "jpeg" not in name]
)
def test_nothing_is_fetched_unasked(reward, models):
    wanted = (
        r"The model of .* is not on this machine: .*http\S+, .*licence .*Switch on allow_download.*put a copy into "
    )
    with pytest.raises(ValueError, match=wanted) as caught:
        load(reward)
    assert "--" not in str(caught.value), "the command line's options mean nothing here"


def test_a_folder_that_is_not_there(models):
    (models / "mine").mkdir(parents=True)
    for chosen in ("gone", "../../etc"):
        with pytest.raises(ValueError, match=f"no folder '{chosen}' in .*only mine"):
            load("clip_score", chosen)
    with pytest.raises(ValueError, match="mine holds none of"):
        load("clip_score", "mine")
    (options,) = [i.options for i in LoadRewardModel.define_schema().inputs if i.id == "model_folder"]
    assert options == ["automatic", "mine"]


@pytest.mark.parametrize("library", ["transformers", "huggingface_hub"])
def test_a_missing_library_is_named_and_cheap_rewards_go_on(library, models, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(library + ".")]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("clip", "image_reward"):
        monkeypatch.delitem(sys.modules, f"diffusion_blend.rewards.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"clip_score needs {library}.*pip install \"diffusion-blend\[training\]\""):
        load("clip_score")
    for cheap in ("colourfulness", "jpeg_compressibility", "miniature.warmth"):
        assert len(score(torch.rand(2, 8, 8, 3), load(cheap))[0]) == 2


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda one: score(torch.rand(3, 8, 8, 3), one, scores=Scores(("a",), ((1.0, 2.0),))),
            "3 images, but the scores connected are of 2",
        ),
        (
            lambda one: score(torch.rand(2, 8, 8, 3), one, name="a", scores=Scores(("a",), ((1.0, 2.0),))),
            "already have a column 'a'",
        ),
        (lambda _: score(torch.rand(1, 32, 32, 3), load("miniature.alignment"), " "), "give Score Images the prompt"),
    ],
)
def test_what_cannot_be_scored(act, message, models):
    with pytest.raises(ValueError, match=re.escape(message)):
        act(load("colourfulness"))


def test_a_network_reward_refuses_an_empty_prompt_before_it_is_used():
    reward = reward_models.RewardModel("image_reward", lambda *_: pytest.fail("called"), None)
    with pytest.raises(ValueError, match="image_reward judges how well an image shows its prompt"):
        score(torch.rand(1, 8, 8, 3), reward, "")
