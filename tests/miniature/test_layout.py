"""The text encoder is trained to say where which colours are."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.miniature import examples, learning
from diffusion_blend.miniature.command import main
from diffusion_blend.miniature.language import read
from diffusion_blend.miniature.layout import CELL, layouts, learn_layout
from diffusion_blend.miniature.model import make_pipeline
from diffusion_blend.miniature.sizes import SIZE

ORDERS = (("red", "blue"), ("blue", "red"))
PROMPTS = [f"a {one} circle {way} a {two} circle" for one, two in ORDERS for way in ("left of", "right of")]


@pytest.fixture
def means(monkeypatch):
    """Of prompts that differ in their order alone."""
    monkeypatch.setattr(examples, "training_descriptions", lambda: [read(prompt) for prompt in PROMPTS])
    monkeypatch.setattr(examples, "KINDS", ("related",))
    monkeypatch.setattr(examples, "KIND_SHARES", (1.0,))
    return examples.mean_latents(16, seed=0)


def test_a_layout_is_the_mean_colour_of_each_cell(means):
    found = layouts({prompt: means[prompt] for prompt in PROMPTS})
    pictures = torch.stack([torch.nn.functional.pixel_shuffle(means[prompt], 2) for prompt in PROMPTS])
    cells = pictures.view(4, 3, SIZE // CELL, CELL, SIZE // CELL, CELL).mean((3, 5)).flatten(1)
    assert torch.allclose(torch.stack(list(found.values())), cells - cells.mean(0), atol=1e-5)


def test_order_and_relation_are_learned_together(tmp_path, means):
    """The same words in another order have another layout; the encodings stay near to those that the UNet knows."""
    pipeline = make_pipeline(tmp_path / "tokenizer", seed=0)
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        before = pipeline.text_encoder(ids).last_hidden_state
    state = torch.get_rng_state()
    assert learn_layout(pipeline.text_encoder, pipeline.tokenizer, means, 150, seed=0) < 0.2
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        after = pipeline.text_encoder(ids).last_hidden_state
    assert 0 < (after - before).square().mean() < before.square().mean()


def test_it_comes_once_before_the_unet_and_needs_mean_pictures(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(learning, "mean_latents", lambda count, seed: {"": torch.zeros(12, 16, 16)})
    monkeypatch.setattr(learning, "learn_layout", lambda *given: seen.append(given[3]))
    plan = {"out": tmp_path / "run", "batch": 2, "mean_of": 4, "layout_steps": 3, "pure_noise": 0.0, "drop_prompt": 1.0}
    learning.learn(learning.LearningConfig(**plan, steps=1, save_every=1), "command")
    learning.learn(learning.LearningConfig(**plan, steps=2), "command")
    assert seen == [3]
    assert main(["train", "--output", str(tmp_path / "other"), "--layout_steps", "5"]) == 1
    assert "there are no mean pictures: give --mean_of 32" in capsys.readouterr().err
