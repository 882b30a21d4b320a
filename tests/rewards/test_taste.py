"""A reward from votes: the fit against scipy, and the whole way from a saved workflow and pictures to the trainer's reward."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from diffusion_blend.artifacts.pictures import read_picture
from diffusion_blend.artifacts.shares import wilson_interval
from diffusion_blend.preference_learning.votes import PICTURE_OPTION, Option
from diffusion_blend.rewards import taste_command
from diffusion_blend.rewards.load import load_rewards
from diffusion_blend.rewards.pixels import colourfulness
from diffusion_blend.rewards.taste import PRIOR, fit_taste
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.optimize import minimize
from scipy.stats import binomtest


def random_pairs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, 2, generator=generator) * torch.tensor([1.0, 30.0]) for _ in range(2))
    return first, second, generator


def test_the_fit_is_the_maximum_that_scipy_finds():
    first, second, generator = random_pairs(40)
    chosen = torch.randint(0, 3, (40,), generator=generator) / 2
    taste = fit_taste(["a", "b"], first, second, chosen)
    x = ((first - second).double() / torch.tensor(taste.scales, dtype=torch.float64)).numpy()
    y = chosen.double().numpy()

    def loss(b):
        z = x @ b
        return np.sum(y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)) + b @ b / (2 * PRIOR**2)

    assert taste.coefficients == pytest.approx(minimize(loss, np.zeros(2), options={"gtol": 1e-9}).x, abs=1e-5)


def test_clear_votes_are_predicted_and_random_ones_are_called_chance():
    first, second, generator = random_pairs(60)
    clear = fit_taste(["a", "b"], first, second, (first[:, 1] > second[:, 1]).float())
    assert clear.hits >= 55 and "knows only what its features measure" in clear.verdict()
    coin = fit_taste(["a", "b"], first, second, torch.randint(0, 2, (60,), generator=generator).float())
    assert "no better than chance" in coin.verdict()


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 7), (60, 60), (512, 1000)])
def test_the_interval_of_a_share_is_scipys(successes, trials):
    wanted = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_votes_without_a_winner_are_too_few():
    first, second, _ = random_pairs(3)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        fit_taste(["a", "b"], first, second, torch.full((3,), 0.5))


@pytest.fixture
def voted(tmp_path):
    """A workflow and kept pictures of someone who likes colour; the last vote's pictures are missing."""
    rng = np.random.default_rng(0)
    folder, lines = tmp_path / "kept", []
    folder.mkdir()
    for number in range(12):
        options = [Option((round(0.01 * number, 2), round(1 - 0.01 * number, 2)), scale).text() for scale in (0.9, 1.1)]
        strengths = rng.permutation([0.2, 1.0])
        for option, strength in zip(options, strengths, strict=True):
            pixels = rng.uniform(0, 255, (16, 16, 3))
            grey = pixels.mean(axis=-1, keepdims=True)
            chunk = PngInfo()
            chunk.add_text(PICTURE_OPTION, option)
            picture = Image.fromarray((grey + strength * (pixels - grey)).astype(np.uint8))
            picture.save(folder / f"picture_{len(list(folder.iterdir())):05}_.png", pnginfo=chunk)
        lines.append(f"{options[0]} {'>' if strengths[0] > strengths[1] else '<'} {options[1]}")
    lines.append("1 0 kl 1 > 0 1 kl 1")
    workflow = {"nodes": [{"type": "PreferenceDuel", "widgets_values": ["\n".join(lines)]}]}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    return tmp_path


def test_from_votes_to_the_trainers_reward(voted, capsys, monkeypatch):
    words = [
        "--votes",
        str(voted / "workflow.json"),
        "--pictures",
        str(voted / "kept"),
        "--output",
        str(voted / "mine"),
    ]
    assert taste_command.main(words) == 0
    said = capsys.readouterr().out
    assert "12 pairs" in said and "1 votes have no kept pictures" in said
    rows = list(csv.DictReader((voted / "mine" / "pairs.csv").open()))
    for row in rows:
        better, worse = ("first", "second") if row["label_first"] == "1" else ("second", "first")
        scores = [
            float(colourfulness(read_picture(voted / "mine" / row[side])[None], [""])) for side in (better, worse)
        ]
        assert scores[0] > scores[1]
    monkeypatch.chdir(voted / "mine")
    reward = load_rewards(["taste_reward:reward"], {}, torch.device("cpu"), allow_download=False)["taste_reward:reward"]
    pictures = torch.stack([read_picture(voted / "mine" / rows[0][side]) for side in ("first", "second")])
    first, second = reward(pictures, ["", ""]).tolist()
    assert (first > second) == (rows[0]["label_first"] == "1")


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ("1 2 0", "holds no votes with their options"),
        ("1 0 kl 1 > 0 1 kl 1\n1", "Vote 2 was typed without its options"),
        ("# 1 0 > 0 1", "holds no votes with their options"),
    ],
)
def test_votes_that_cannot_be_used_are_named(voted, capsys, votes, message):
    (voted / "votes.txt").write_text(votes)
    words = ["--votes", str(voted / "votes.txt"), "--pictures", str(voted / "kept"), "--output", str(voted / "mine")]
    assert taste_command.main(words) == 1
    assert message in capsys.readouterr().err


def test_a_comment_is_no_vote(tmp_path):
    (tmp_path / "votes.txt").write_text("# my extra votes here\n1 0 > 0 1  # x\n")
    (vote,) = taste_command.votes_in(tmp_path / "votes.txt")
    assert vote.text() == "1 0 kl 1 > 0 1 kl 1"


@pytest.mark.parametrize("values", [["1 0 > 0 1", 3], {"votes": "1 0 > 0 1", "seed": 3}])
def test_a_workflow_lists_its_values_or_names_them(tmp_path, values):
    nodes = [{"type": "PreferenceDuel", "widgets_values": values}, {"type": "PreferenceDuel"}]
    (tmp_path / "workflow.json").write_text(json.dumps({"nodes": nodes}))
    assert len(taste_command.votes_in(tmp_path / "workflow.json")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no nodes"),
        ('{"1": {"class_type": "PreferenceDuel"}}', "not its API form"),
        ('{"nodes": [{"type": "PreferenceDuel", "widgets_values": {"other": 1}}]}', "holds no votes"),
    ],
)
def test_files_that_are_no_workflow_are_refused(tmp_path, content, message):
    (tmp_path / "workflow.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        taste_command.votes_in(tmp_path / "workflow.json")
