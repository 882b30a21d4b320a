"""Rewards: hand values, invariances, gradients, and other implementations of the same formula."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from diffusion_blend.miniature import rewards
from diffusion_blend.miniature.language import sample, write
from diffusion_blend.miniature.renderer import render, sample_scene
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

EVERY = rewards.REWARDS | {"smooth_compressibility": rewards.DIFFERENTIABLE["compressibility"]}
DIFFERENTIABLE = ("colourfulness", "warmth", "brightness", "softness", "contrast")


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(11)
    wanted = [sample(generator) for _ in range(24)]
    pictures = render(
        [sample_scene(description, generator) for description in wanted], torch.Generator().manual_seed(0)
    )
    return pictures, [write(description) for description in wanted]


@pytest.mark.parametrize("name", EVERY)
def test_a_score_does_not_depend_on_the_batch(name, drawn):
    pictures, prompts = drawn
    scores = EVERY[name](pictures, prompts)
    assert scores.shape == (24,) and bool(scores.isfinite().all())
    backwards = EVERY[name](pictures.flip(0), prompts[::-1])
    assert torch.allclose(backwards.flip(0), scores, atol=1e-4)
    alone = torch.cat([EVERY[name](pictures[i : i + 1], [prompts[i]]) for i in range(24)])
    assert torch.allclose(alone, scores, atol=1e-4)
    assert scores.std() > 0.1  # it tells pictures apart


@pytest.mark.parametrize("name", EVERY)
def test_prompts_and_pictures_must_match_in_number(name, drawn):
    with pytest.raises(ValueError, match="24 images and 1 prompts"):
        EVERY[name](drawn[0], ["a red circle"])


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "smooth_compressibility"])
def test_a_differentiable_reward_computes_where_its_images_are(name):
    """The trainer keeps images on the GPU where it needs a reward's gradient. A fake tensor has a device and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.rand((2, 3, 32, 32), device="cuda")
        assert EVERY[name](images, ["", ""]).device.type == "cuda"


def test_alignment_prefers_the_right_prompt(drawn):
    pictures, prompts = drawn
    right, wrong = rewards.alignment(pictures, prompts), rewards.alignment(pictures, prompts[1:] + prompts[:1])
    assert bool((right > 3.5).all()) and right.mean() > wrong.mean() + 1.5


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_finite_differences(name):
    images = torch.rand((2, 3, 5, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(
        True
    )
    assert torch.autograd.gradcheck(lambda x: EVERY[name](x, ["", ""]), (images,))


def test_the_differentiable_estimate_explains_the_files_sizes(drawn):
    pictures, prompts = drawn
    smooth, true = rewards.smooth_compressibility(pictures, prompts), rewards.compressibility(pictures, prompts)
    correlation = np.corrcoef(smooth.numpy(), true.numpy())[0, 1]
    print(f"correlation {correlation:.3f}, difference {float((smooth - true).mean()):.3f}")
    assert correlation > 0.95
    assert float((smooth - true).abs().mean()) < 1.0


def test_the_differentiable_estimate_counts_the_coefficients_of_a_discrete_cosine_transform():
    from scipy.fft import dctn

    grey = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(3)).expand(1, 3, 16, 16)
    table = rewards._LUMA_TABLE.numpy()
    blocks = (255 * grey[0, 0].double().numpy() - 128).reshape(2, 8, 2, 8).transpose(0, 2, 1, 3)
    bits = np.log2(1 + np.abs(dctn(blocks, axes=(2, 3), norm="ortho") / table)).sum()
    expected = -20 * (rewards._HEADER + rewards._PER_BIT * bits) / 1000
    assert rewards.smooth_compressibility(grey, [""]).item() == pytest.approx(expected, rel=1e-4)


def test_colourfulness_is_the_published_formula(drawn):
    picture = drawn[0][0].numpy().astype(np.float64)
    rg, yb = picture[0] - picture[1], 0.5 * (picture[0] + picture[1]) - picture[2]
    expected = 30 * (np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
    assert rewards.colourfulness(drawn[0][:1], [""]).item() == pytest.approx(expected, rel=1e-4)
    grey = torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert rewards.colourfulness(grey, [""]).item() == pytest.approx(0, abs=1e-4)
    # Twice the distance from grey is twice as colourful.
    faded = (drawn[0] - 0.5) / 2 + 0.5
    whole, half = rewards.colourfulness(drawn[0], drawn[1]), rewards.colourfulness(faded, drawn[1])
    assert torch.allclose(whole, 2 * half, rtol=1e-3)


def test_compressibility_is_the_size_of_the_file(drawn):
    picture = drawn[0][:1]
    file = io.BytesIO()
    array = np.rint(picture[0].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
    Image.fromarray(array, "RGB").save(file, "jpeg", quality=95)
    assert rewards.compressibility(picture, [""]).item() == pytest.approx(-len(file.getvalue()) / 50)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(noise, 0.5)
    order = [rewards.compressibility(images, [""]).item() for images in (noise, picture, flat)]
    assert order == sorted(order)


def test_warmth_brightness_softness_and_contrast_by_hand():
    white, red, blue = (
        torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 4, 4) for c in ([1.0, 1, 1], [1.0, 0, 0], [0, 0, 1.0])
    )
    assert [rewards.warmth(x, [""]).item() for x in (white, red, blue)] == [0.0, 10.0, -10.0]
    assert [rewards.brightness(x, [""]).item() for x in (white, red, blue)] == pytest.approx(
        [25.0, 25 * 0.299, 25 * 0.114]
    )
    # Black and white columns: every step across is 1, every step down 0.
    stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 3, 8, 8)
    assert rewards.softness(stripes, [""]).item() == pytest.approx(-250)
    assert rewards.softness(stripes * 0.5 + 0.25, [""]).item() == pytest.approx(-125)
    assert rewards.softness(white, [""]).item() == 0
    assert rewards.contrast(stripes, [""]).item() == pytest.approx(30)
    assert rewards.contrast(stripes * 0.5 + 0.25, [""]).item() == pytest.approx(15)
    assert rewards.contrast(white, [""]).item() == pytest.approx(0, abs=1e-4)
