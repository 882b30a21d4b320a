"""The miniature model: standard classes, saved, loaded and trained again where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusion_blend.miniature import examples, learning
from diffusion_blend.miniature.command import main
from diffusion_blend.miniature.language import descriptions, read, sample, write
from diffusion_blend.miniature.model import load_pipeline, make_pipeline
from diffusion_blend.miniature.pixel_vae import PixelVAE
from diffusion_blend.miniature.renderer import render, sample_scene
from diffusion_blend.miniature.sizes import SCALING_FACTOR
from diffusion_blend.miniature.vocabulary import TOKENS, merges, words


def test_the_vae_is_exactly_invertible_and_halves_the_size():
    vae = PixelVAE()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = vae.encode(images).latent_dist.sample()
    assert latents.shape == (2, 12, 16, 16)
    assert torch.equal(vae.decode(latents).sample, images)
    assert torch.equal(vae.decode(latents, return_dict=False)[0], images)
    # The four pixels of a 2 x 2 square and three colours lie in one latent position.
    assert set(latents[0, :, 3, 5].tolist()) == set(images[0, :, 6:8, 10:12].flatten().tolist())


def test_latents_have_about_unit_variance():
    generator = np.random.default_rng(0)
    pictures = render(
        [sample_scene(sample(generator), generator) for _ in range(500)], torch.Generator().manual_seed(0)
    )
    latents = PixelVAE().encode(2 * pictures - 1).latent_dist.mode() * SCALING_FACTOR
    assert latents.std().item() == pytest.approx(1, abs=0.03)
    assert latents.mean().item() == pytest.approx(0, abs=0.06)


def test_every_word_is_one_token(fresh):
    tokenizer = fresh.tokenizer
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = {word: tokenizer(word)["input_ids"] for word in words()}
    assert all(len(tokens) == 3 and tokens[0] == start and tokens[-1] == end for tokens in ids.values())
    assert len({tokens[1] for tokens in ids.values()}) == len(words())
    padded = tokenizer("a red circle", padding="max_length")["input_ids"]
    assert len(padded) == TOKENS and padded[4:] == [end] * (TOKENS - 4)


def test_merges_depend_on_the_words_alone():
    assert merges(words()) == merges(words()[::-1])
    # "ab" is twice there, "bc" and "cd" once: of these the alphabetically first is next.
    assert merges(["abx", "abcd"]) == [("a", "b"), ("ab", "c"), ("ab", "x</w>"), ("abc", "d</w>")]


def test_the_noise_schedule_is_that_of_stable_diffusion(fresh):
    # The published constants, by numpy: betas whose roots are evenly spaced.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    expected = np.cumprod(1 - betas)
    np.testing.assert_allclose(fresh.scheduler.alphas_cumprod.numpy(), expected, rtol=1e-4)
    assert fresh.scheduler.config.prediction_type == "epsilon"


def test_the_seed_makes_the_weights_and_nothing_else_changes(tmp_path, fresh):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = make_pipeline(tmp_path / "a", seed=0), make_pipeline(tmp_path / "b", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    name = "mid_block.attentions.0.proj_in.weight"
    assert torch.equal(again.unet.state_dict()[name], fresh.unet.state_dict()[name])
    assert not torch.equal(other.unet.state_dict()[name], fresh.unet.state_dict()[name])


def config(out, **changes):
    return learning.LearningConfig(**{"out": out, "steps": 4, "batch": 2, "save_every": 2, "warm_up": 1, **changes})


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    losses: list[float] = []
    loss_of, batch_of = learning.denoising_loss, learning.draw_batch

    def noted(*arguments):
        loss = loss_of(*arguments)
        losses.append(loss.item())
        return loss

    def stop(seed, step, *more):
        if step == 3:
            raise KeyboardInterrupt
        return batch_of(seed, step, *more)

    monkeypatch.setattr(learning, "denoising_loss", noted)
    whole = learning.learn(config(tmp_path / "whole"), "command")
    expected = list(losses)
    # Stop after the checkpoint of step 2, as a killed process would.
    monkeypatch.setattr(learning, "draw_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        learning.learn(config(tmp_path / "parts"), "command")
    monkeypatch.setattr(learning, "draw_batch", batch_of)
    losses.clear()
    resumed = learning.learn(config(tmp_path / "parts"), "command")
    # The third loss needs the weights, the fourth also the optimiser's moments.
    assert losses == pytest.approx(expected[2:], rel=2e-3)
    # Weights themselves differ by rounding where a gradient is 0 but for rounding: compare one whose is not.
    name = "conv_in.weight"
    one, two = (load_pipeline(folder).unet.state_dict()[name] for folder in (whole, resumed))
    began = make_pipeline(tmp_path / "tokenizer", seed=0).unet.state_dict()[name]
    assert (one - began).abs().mean() > 20 * (one - two).abs().mean()
    with pytest.raises(ValueError, match=r"started with seed 0, not 9.*another folder"):
        learning.learn(config(tmp_path / "parts", seed=9), "command")


def test_the_saved_model_makes_the_pictures_of_the_model_in_memory(tmp_path, fresh):
    fresh.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model")
    assert isinstance(loaded.vae, PixelVAE) and loaded.vae_scale_factor == 2

    def picture(pipeline):
        generator = torch.Generator().manual_seed(3)
        return pipeline("a red circle", num_inference_steps=3, eta=1.0, generator=generator, output_type="pt").images

    assert picture(loaded).shape == (1, 3, 32, 32)
    assert torch.equal(picture(loaded), picture(fresh))
    with pytest.raises(ValueError, match=r"No miniature model in .*empty: train one with"):
        load_pipeline(tmp_path / "empty")


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_the_loss_of_pure_guessing_is_the_weights_mean(tmp_path, fresh, floor):
    # A UNet that answers 0 has error 1 per element, so the loss is the mean weight of the drawn timesteps.
    class Zero:
        def __call__(self, noisy, steps, context):
            self.steps = steps
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    zero = Zero()
    plan = config(tmp_path, high_noise=0.5, snr_floor=floor)
    loss = examples.denoising_loss(fresh, zero, examples.draw_batch(0, 0, 256, 0.0), 1, plan).item()
    kept = fresh.scheduler.alphas_cumprod[zero.steps].double()
    snr = kept / (1 - kept)
    weight = torch.clamp(snr, floor, 5.0) / snr
    assert loss == pytest.approx(weight.mean().item(), rel=0.02)
    assert (zero.steps > examples.LAYOUT_TIMESTEP).double().mean() == pytest.approx(0.7, abs=0.07)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.4), (1.0, 1.0)])
def test_the_share_of_high_noise_decides_how_many_timesteps_are_above_600(share, expected):
    steps = examples.draw_timesteps(4000, share, torch.Generator().manual_seed(0))
    assert steps.min() >= 0 and steps.max() < 1000
    assert (steps >= examples.LAYOUT_TIMESTEP).double().mean() == pytest.approx(expected, abs=0.03)


def test_learning_rate_rises_stays_and_falls(tmp_path):
    plan = config(tmp_path, steps=100, warm_up=10, cool_down=0.2, learning_rate=1.0)
    rates = [learning.learning_rate(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:80] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)


def test_a_run_from_a_model_begins_with_its_weights(tmp_path, fresh):
    fresh.save_pretrained(tmp_path / "given")
    older = json.loads((tmp_path / "given/scheduler/scheduler_config.json").read_text()) | {
        "timestep_spacing": "leading"
    }
    (tmp_path / "given/scheduler/scheduler_config.json").write_text(json.dumps(older))
    (tmp_path / "given" / "training.json").write_text('{"seed": 0}')
    config = learning.LearningConfig(out=tmp_path / "on", steps=1, seed=9, start=tmp_path / "given", batch=2, warm_up=0)
    (tmp_path / "on").mkdir()
    begun = learning._start(config)
    for part in ("unet", "text_encoder"):
        given, taken = getattr(fresh, part).state_dict(), getattr(begun.pipeline, part).state_dict()
        assert given.keys() == taken.keys() and all(torch.equal(given[key], taken[key]) for key in given)
    other = make_pipeline(tmp_path / "other", seed=9)
    assert not torch.equal(other.unet.conv_in.weight, begun.pipeline.unet.conv_in.weight)
    folder = learning.learn(config, "a command")
    assert json.loads((folder / "training.json").read_text())["started_from"] == {"seed": 0}
    assert not any(str(tmp_path) in path.read_text() for path in folder.rglob("*.json"))
    steps = load_pipeline(folder).scheduler
    steps.set_timesteps(10)
    assert int(steps.timesteps[0]) == 999  # where it was trained from noise alone


def test_a_batch_has_the_kinds_that_are_asked_for(capsys):
    prompts = examples.draw_batch(3, 0, 24, drop_prompt=0.0, shares=(0, 0.5, 0, 0, 0.5))[1]
    assert {read(prompt).kind for prompt in prompts} == {"placed", "related"}
    usual = examples.draw_batch(3, 0, 24, drop_prompt=0.0)[1]
    assert len({read(prompt).kind for prompt in usual}) > 2
    assert main(["train", "--output", "unused", "--shares", "0", "0", "0", "0", "0"]) == 1
    assert "give weights of 0 or more" in capsys.readouterr().err


def test_from_noise_alone_the_mean_picture_of_a_prompt_can_be_learned(tmp_path, fresh, monkeypatch):
    """A UNet that answers with the noise prediction that leads to the mean has no error there, and only there."""
    asked = [description for description in descriptions("placed") if description.things[0].colour == "red"]
    monkeypatch.setattr(examples, "training_descriptions", lambda: [*asked, *descriptions("single")[:1]])
    monkeypatch.setattr(examples, "KINDS", ("single", "placed"))
    monkeypatch.setattr(examples, "KIND_SHARES", (0.5, 0.5))
    means = examples.mean_latents(8, seed=3)
    assert means.keys() == {*map(write, asked), "a red circle", ""}
    red = torch.nn.functional.pixel_shuffle(means["a red circle on the left"], 2)[0]
    assert red[:, :16].mean() > red[:, 16:].mean()
    again = examples.mean_latents(8, seed=3)
    assert all(torch.equal(again[prompt], mean) for prompt, mean in means.items())

    prompts = ["a red circle on the left", "", "a red square at the top"]
    kept = fresh.scheduler.alphas_cumprod[-1]

    def answers(noisy, steps, context):
        wanted = torch.stack([means[prompt] for prompt in prompts])
        return type("Output", (), {"sample": (noisy - kept.sqrt() * wanted) / (1 - kept).sqrt()})

    batch = (torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(0)), prompts)
    plan = config(tmp_path, pure_noise=1.0)
    assert examples.denoising_loss(fresh, answers, batch, 1, plan, means).item() < 1e-6
    assert examples.denoising_loss(fresh, answers, batch, 1, plan).item() > 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shares", ".nan", "1", "1", "1", "1"], "--shares is nan: it must be a finite number"),
        (["--shares", "-1", "1", "1", "1", "1"], "give weights of 0 or more"),
        (["--pure_noise", "1.5"], "--pure_noise is 1.5: it is a share"),
        (["--high_noise", ".nan"], "--high_noise is nan: it must be a finite number"),
        (["--high_noise", "1.5"], "--high_noise is 1.5: it is a share"),
        (["--learning_rate", "-1"], "--learning_rate is -1.0: give a number"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_the_work(tmp_path, capsys, given, said):
    assert main(["train", "--output", str(tmp_path / "new"), *given]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
