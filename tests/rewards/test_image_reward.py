"""ImageReward: a checkpoint in the published layout gives the same scores as the original architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blip_reference import random_checkpoint, raw_score
from diffusion_blend.rewards.image_reward import MEAN, STD, ImageReward
from diffusion_blend.rewards.load import load_rewards

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "##s", "two"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(random_checkpoint(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def test_the_mapped_model_is_the_original(folder: Path) -> None:
    reward = ImageReward(folder, folder, CPU)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(0, 40, (3, 35), generator=generator)
    mask = (torch.arange(35) < torch.tensor([[35], [20], [4]])).long()
    expected = (raw_score(random_checkpoint(), pixels, tokens, mask) - MEAN) / STD
    torch.testing.assert_close(reward.score_tensors(pixels, tokens, mask).detach(), expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 1e-2


def test_images_and_prompts_both_count(folder: Path) -> None:
    reward = load_rewards(["image_reward"], {"image_reward": str(folder)}, CPU, allow_download=False)["image_reward"]
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    a = reward(images, ["a red cat", "a red cat"])
    b = reward(images, ["two dogs", "a red cat"])
    assert a.shape == (2,)
    assert float((a[0] - a[1]).abs()) > 1e-5 and float((a[0] - b[0]).abs()) > 1e-5
    assert float(a[1]) == pytest.approx(float(b[1]), abs=1e-5)


def test_words_are_read_as_bert_reads_them(folder: Path) -> None:
    reward = ImageReward(folder, folder, CPU)
    tokens = reward._tokenizer(["Two CATS"], padding="max_length", truncation=True, max_length=35)["input_ids"][0]
    assert tokens[:5] == [2, 10, 7, 9, 3] and tokens[5:] == [0] * 30


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(2)}, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="not an ImageReward checkpoint"):
        ImageReward(tmp_path, tmp_path, CPU)
