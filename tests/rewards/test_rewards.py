"""Rewards against independent formulas; models have their true architecture with small random weights."""

from __future__ import annotations

import io
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
from diffusion_blend.artifacts.pictures import to_pil
from diffusion_blend.rewards.catalogue import CATALOGUE, MOVED, check_names, short_names
from diffusion_blend.rewards.clip import Aesthetic, ClipScore, HpsV2, PickScore
from diffusion_blend.rewards.heads import LinearStack
from diffusion_blend.rewards.load import load_rewards
from diffusion_blend.rewards.pixels import colourfulness, jpeg_compressibility, jpeg_incompressibility
from diffusion_blend.rewards.preprocess import smooth_pixels
from diffusion_blend.rewards.protocol import weighted_sum
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "a dog", "two cats and a very long prompt that does not fit into sixteen tokens"]


def pictures(count: int = 3, side: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


def clip_logits(folder: Path) -> tuple[torch.Tensor, float]:
    """Compute image-text cosines by the model's own forward pass on hand-made pixels and tokens."""
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's published constants
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = []
    for picture in pictures():
        small = to_pil(picture).resize((32, 32), Image.Resampling.BICUBIC)
        pixels.append((torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1) / 255 - mean) / std)
    logits = []
    for i, prompt in enumerate(PROMPTS):  # one at a time: padding must not matter
        tokens = processor.tokenizer([prompt], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            output = model(input_ids=tokens["input_ids"], pixel_values=pixels[i][None])
        logits.append(output.logits_per_image[0, 0])
    scale = float(model.logit_scale.exp())
    return torch.stack(logits) / scale, scale


def test_clip_rewards(clip_folder: Path) -> None:
    cosine, scale = clip_logits(clip_folder)
    images = pictures()
    assert float(cosine.std()) > 1e-3
    # a tensor resize differs from Pillow's in the last bit of a byte now and then
    close = {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(HpsV2(clip_folder, clip_folder, CPU)(images, PROMPTS), cosine, **close)
    clip_score = ClipScore(clip_folder, clip_folder, CPU)(images, PROMPTS)
    torch.testing.assert_close(clip_score, (100 * cosine).clamp(min=0), rtol=2e-2, atol=0.2)
    pick = PickScore(clip_folder, clip_folder, CPU)(images, PROMPTS)
    torch.testing.assert_close(pick, scale * cosine - 19, rtol=2e-2, atol=0.05)


def head_state(inputs: int, prefix: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    widths = [inputs, 1024, 128, 64, 16, 1]
    state = {}
    for position, (a, b) in zip((0, 2, 4, 6, 7), itertools.pairwise(widths), strict=True):
        state[f"{prefix}layers.{position}.weight"] = torch.randn(b, a, generator=generator) / math.sqrt(a)
        state[f"{prefix}layers.{position}.bias"] = torch.randn(b, generator=generator)
    return state


def by_matrices(features: torch.Tensor, state: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    for position in (0, 2, 4, 6, 7):
        features = features @ state[f"{prefix}layers.{position}.weight"].T + state[f"{prefix}layers.{position}.bias"]
    return features[:, 0]


def test_aesthetic(clip_folder: Path, tmp_path: Path) -> None:
    state = head_state(24)
    torch.save(state, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    reward = Aesthetic(clip_folder, tmp_path, CPU)
    model = CLIPModel.from_pretrained(clip_folder)
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    pixels = processor([to_pil(image) for image in pictures()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).pooler_output @ model.visual_projection.weight.T
    expected = by_matrices(hidden / hidden.square().sum(1, keepdim=True).sqrt(), state)
    torch.testing.assert_close(reward(pictures(), PROMPTS), expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_not_the_published_one() -> None:
    with pytest.raises(ValueError, match=r"without layers.0.weight"):
        LinearStack({"other": torch.ones(1)})


@given(seed=st.integers(0, 1000), side=st.integers(2, 9))
@hypothesis_settings(max_examples=25, deadline=None)
def test_colourfulness_by_numpy(seed: int, side: int) -> None:
    image = np.random.default_rng(seed).random((side, side, 3))
    r, g, b = (255 * image[..., i] for i in range(3))
    rg, yb = r - g, 0.5 * (r + g) - b
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert float(colourfulness(tensor, ["x"])) == pytest.approx(expected, rel=1e-9)
    grey = tensor[:, :1].expand(-1, 3, -1, -1)
    assert float(colourfulness(grey, ["x"])) == pytest.approx(0, abs=1e-9)


def test_jpeg_sizes_are_those_of_pillow() -> None:
    images = torch.stack(
        [torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    )
    sizes = []
    for image in images:
        file = io.BytesIO()
        array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(array).save(file, format="JPEG", quality=95)
        sizes.append(len(file.getvalue()) / 1000)
    assert jpeg_incompressibility(images, ["", ""]).tolist() == sizes
    assert jpeg_compressibility(images, ["", ""]).tolist() == [-size for size in sizes]
    assert sizes[0] < sizes[1]


def test_weighted_sum() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "watched": torch.tensor([7.0, 7.0])}
    assert weighted_sum(scores, {"a": 0.5, "b": -1.0}).tolist() == [-9.5, -19.0]


def test_names() -> None:
    check_names([*CATALOGUE, "own_rewards:redness"])
    with pytest.raises(ValueError, match="unknown reward 'imagereward'"):
        check_names(["imagereward"])
    loaded = load_rewards(["own_rewards:plain_redness", "colourfulness"], {}, CPU, allow_download=False)
    assert loaded["own_rewards:plain_redness"](pictures(), PROMPTS).shape == (3,)
    with pytest.raises(ValueError, match="names 'aesthetic', which is not among"):
        load_rewards(["colourfulness"], {"aesthetic": "x"}, CPU, allow_download=False)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["aesthetic", "mine:reward"], ["aesthetic", "reward"]),
        (["http://127.0.0.1:8901/score#batch=8"], ["http://127.0.0.1:8901/score"]),
        (["a:reward", "b:reward", "c:other"], ["a:reward", "b:reward", "other"]),
        (["aesthetic", "mine:aesthetic"], ["aesthetic", "mine:aesthetic"]),
        (
            ["http://localhost/#batch=8", "http://localhost/#batch=4"],
            ["http://localhost/#batch=8", "http://localhost/#batch=4"],
        ),
    ],
)
def test_short_names_stay_different(names: list[str], short: list[str]) -> None:
    assert short_names(names) == dict(zip(names, short, strict=True))


@pytest.mark.parametrize("name", MOVED)
def test_a_name_of_an_earlier_version_says_what_to_do_instead(name: str) -> None:
    with pytest.raises(ValueError, match=f"reward '{name}': .*docs/examples/{name}.*{name}:{name}"):
        load_rewards([name], {}, CPU, allow_download=False)


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.has_model])
def test_no_model_and_no_consent(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what would be fetched, from where, how large, under which licence, and how to go on."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    parts = r"from https://huggingface.co/\S+, [\d.]+ [MG]B, licence (MIT|Apache).*--allow_download.*--reward_folders"
    with pytest.raises(ValueError, match=f"not on this machine: .*{parts}"):
        load_rewards([name], {}, CPU, allow_download=False)
    with pytest.raises(ValueError, match="holds none of"):
        load_rewards([name], {name: str(tmp_path)}, CPU, allow_download=False)


def test_rewards_without_a_model_import_nothing_heavy() -> None:
    """ComfyUI's score nodes use these rewards without the training extra."""
    code = (
        "import sys, torch\n"
        "from diffusion_blend.rewards.load import load_rewards\n"
        "def heavy(): return sorted({m.split('.')[0] for m in sys.modules} & {'transformers', 'huggingface_hub', 'diffusers'})\n"
        "cpu = torch.device('cpu')\n"
        "load_rewards(['jpeg_compressibility', 'colourfulness'], {}, cpu, allow_download=False); print(heavy())\n"
        "try: load_rewards(['clip_score'], {}, cpu, allow_download=False)\n"
        "except ValueError: print(heavy())\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["[]", "['huggingface_hub', 'transformers']"], done.stderr[-2000:]


def test_a_reward_computes_where_its_network_is(clip_folder: Path, tmp_path: Path) -> None:
    """The host moves networks between calls: the inputs must follow the weights, not the device of loading."""
    torch.save(head_state(24), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    reward = Aesthetic(clip_folder, tmp_path, CPU)
    assert reward(pictures(), PROMPTS).device == reward.device == CPU
    reward.network.to("meta")
    assert reward.device == torch.device("meta")
    assert reward(pictures(), PROMPTS).device == torch.device("meta")


def test_a_known_reward_loads_from_a_folder(clip_folder: Path) -> None:
    loaded = load_rewards(["clip_score"], {"clip_score": str(clip_folder)}, CPU, allow_download=False)
    expected = ClipScore(clip_folder, clip_folder, CPU)(pictures(), PROMPTS)
    assert torch.equal(loaded["clip_score"](pictures(), PROMPTS), expected)


@pytest.fixture
def fake_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in place of TensorFlow, whose model returns a PNG's mean brightness. The process and the scaling are real."""
    (tmp_path / "tensorflow.py").write_text(
        "import io, types\n"
        "from PIL import Image, ImageStat\n"
        "print('noise on standard output, as TensorFlow makes')\n"
        "constant = bytes\n"
        "def predict(data):\n"
        "    stat = ImageStat.Stat(Image.open(io.BytesIO(data)))\n"
        "    return {'predictions': sum(stat.mean) / 3 / 255}\n"
        "def load(folder):\n"
        "    return types.SimpleNamespace(signatures={'serving_default': predict})\n"
        "saved_model = types.SimpleNamespace(load=load)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("VILA_PYTHON", sys.executable)
    yield tmp_path


def vila_example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the example as a command does, from the folder in which the command runs."""
    monkeypatch.chdir(Path(__file__).parents[2] / "docs" / "examples" / "vila")
    monkeypatch.delitem(sys.modules, "vila", raising=False)
    return load_rewards(["vila:vila"], {}, CPU, allow_download=False)["vila:vila"]


def test_the_vila_example_runs_in_its_own_process_and_is_scaled(
    fake_tensorflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VILA_MODEL", str(fake_tensorflow))
    vila = vila_example(monkeypatch)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.full((3, 8, 8), 0.2)])
    assert vila(images, ["", "", ""]).tolist() == pytest.approx([-2.0, 2.0, 4 * 0.2 - 2])
    assert "tensorflow" not in sys.modules
    sys.modules["vila"]._started[0].close()


def test_the_vila_example_without_a_model_or_tensorflow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vila = vila_example(monkeypatch)
    monkeypatch.delenv("VILA_MODEL", raising=False)
    with pytest.raises(ValueError, match="set VILA_MODEL to a folder with VILA's SavedModel, or to download"):
        vila(torch.zeros(1, 3, 8, 8), [""])
    monkeypatch.setenv("VILA_MODEL", str(tmp_path))
    with pytest.raises(ValueError, match=r"No module named 'tensorflow'.*It needs TensorFlow.*VILA_PYTHON"):
        vila(torch.zeros(1, 3, 8, 8), [""])


@pytest.mark.parametrize("name", ["clip_score", "pick_score", "hps_v2", "aesthetic"])
def test_a_network_reward_rises_along_its_gradient_as_far_as_the_gradient_says(
    name: str, clip_folder: Path, tmp_path: Path
) -> None:
    """Against differences of the published path, which rounds to bytes: steps are far larger than a byte's."""
    torch.save(head_state(24), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    cls = {"clip_score": ClipScore, "pick_score": PickScore, "hps_v2": HpsV2, "aesthetic": Aesthetic}[name]
    reward = cls(clip_folder, tmp_path if name == "aesthetic" else clip_folder, CPU)
    images = (0.25 + 0.5 * pictures()).requires_grad_(True)
    scores = reward(images, PROMPTS)
    assert torch.equal(scores.detach(), reward(images.detach(), PROMPTS)), "the gradient must not change the score"
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    size = gradient.abs().amax((1, 2, 3), keepdim=True)
    assert float(size.max()) > 0  # CLIPScore is 0, without a gradient, where the cosine is negative
    move = 0.05 * gradient / size.clamp(min=1e-12)
    with torch.no_grad():
        rise = reward(images + move, PROMPTS) - reward(images - move, PROMPTS)
    predicted = 2 * (gradient * move).sum((1, 2, 3))
    assert torch.equal(predicted > 0, size.flatten() > 0)
    torch.testing.assert_close(rise[predicted > 0], predicted[predicted > 0], rtol=0.15, atol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), (40, 52), (200, 131)])
def test_the_smooth_pixels_are_the_processors_up_to_its_rounding(height: int, width: int, clip_folder: Path) -> None:
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    exact = processor([to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
    smooth = smooth_pixels(processor, images)
    assert smooth.shape == exact.shape
    difference = (smooth - exact).abs() * min(processor.image_std) * 255
    assert float(difference.max()) < 2.5, "in units of a byte"  # rounded before and after the resize
    assert float((smooth - exact).mean().abs()) < 1e-3


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_colourfulness_has_a_gradient_at_a_uniform_picture(level: float) -> None:
    image = torch.full((1, 3, 6, 6), level, requires_grad=True)
    colourfulness(image, [""]).sum().backward()
    assert image.grad is not None and bool(image.grad.isfinite().all())
