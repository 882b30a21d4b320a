"""The adapter that reads the preference: its token, its reward, its training and its place in a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.sweep.config import SweepConfig
from diffusion_blend.evaluation.sweep.prepare import prepare
from diffusion_blend.miniature import conditioned
from diffusion_blend.miniature.adapters import train_conditioned
from diffusion_blend.miniature.base import shipped
from diffusion_blend.miniature.model import load_pipeline, weights_folder
from diffusion_blend.miniature.reward_names import CONDITIONED_BASE, REWARD_NAMES
from diffusion_blend.miniature.rewards import REWARDS
from diffusion_blend.training.config import AdapterConfig, BaseConfig, PromptConfig
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from safetensors import safe_open

NAMES = ("softness", "warmth")
LAYERS = 88
"""All adapted layers of the miniature."""
WORDS = ["--sampling.samples", "2", "--sampling.batch", "2", "--sampling.steps", "2", "--run.iterations", "2"]
WORDS += ["--run.watch_every", "0", "--adapter.rank", "2", "--optimizer.learning_rate", "0.05"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train_conditioned(NAMES, tmp_path_factory.mktemp("conditioned"), WORDS)


def test_a_preference_is_a_bias_and_no_preference_is_the_shipped_base() -> None:
    base, plain = conditioned.base(), shipped()
    text = conditioned.with_preference("a red circle", {"softness": 0.25, "warmth": 0.75, "contrast": 1e-9})
    assert text == "a red circle @ softness:0.250000,warmth:0.750000"
    assert conditioned.split_preference(text) == ("a red circle", {"softness": 0.25, "warmth": 0.75})
    key = "encoder_hidden_states"
    told, expected = base.encode([text]).prompt, plain.encode(["a red circle"]).prompt
    without = base.encode(["a red circle"]).prompt
    assert set(without) == set(expected)
    assert torch.equal(without[key], expected[key]) and torch.equal(told[key], expected[key])
    shares = dict(zip(REWARD_NAMES, told["preference"][0].tolist(), strict=True))
    assert {name: share for name, share in shares.items() if share} == {"softness": 0.25, "warmth": 0.75}
    for width in (32, 64):
        products = conditioned.directions(width) @ conditioned.directions(width).T
        torch.testing.assert_close(products, width * torch.eye(len(REWARD_NAMES)), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="some prompts have a preference and some have none"):
        base.encode([text, "a red circle"])


def test_an_untrained_adapter_and_the_base_of_the_kl_know_no_bias() -> None:
    base = conditioned.base()
    model = DiffusersModel(base, AdapterConfig(rank=2), 0)
    x, t = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    told, plain = (base.encode([text]).prompt for text in ("a red circle @ softness:1", "a red circle"))
    with torch.no_grad():
        expected = shipped().unet(x, t, encoder_hidden_states=plain["encoder_hidden_states"]).sample
        torch.testing.assert_close(model.predict(x, t, told, base=True), expected)
        torch.testing.assert_close(model.predict(x, t, told, base=False), expected, atol=1e-4, rtol=1e-4)
        for name, parameter in base.unet.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
        assert not torch.allclose(
            model.predict(x, t, told, base=False), model.predict(x, t, plain, base=False), atol=1e-3
        )


def test_the_reward_is_each_prompts_own_mixture() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = ["a red circle @ softness:1", "a blue square @ softness:0.25,warmth:0.75"]
    soft, warm = (REWARDS[name](images, ["a red circle", "a blue square"]) for name in NAMES)
    torch.testing.assert_close(
        conditioned.mixture(images, prompts), torch.stack([soft[0], 0.25 * soft[1] + 0.75 * warm[1]])
    )
    with pytest.raises(ValueError, match="a prompt without a preference"):
        conditioned.mixture(images, ["a red circle", prompts[1]])


def test_training_draws_a_preference_for_each_picture(file: Path) -> None:
    lines = (file.parent / "prompts.txt").read_text().splitlines()
    assert len(lines) == 2 * len(NAMES) * 2 and len(set(lines)) == len(lines)  # iterations, rewards, pictures
    assert lines == conditioned.training_prompts([line.partition(" @ ")[0] for line in lines], NAMES, len(lines), 0)
    with safe_open(str(file), framework="pt") as content:
        header = content.metadata()
    assert json.loads(header["diffusion_blend.reward"]) == list(NAMES)
    settings = json.loads(header["diffusion_blend.config"])
    assert (settings["adapter"]["rank"], settings["run"]["iterations"]) == (4, 4)  # as a group of two


def settings(output: Path, file: Path, **over: Any) -> SweepConfig:
    prompts = output.parent / "prompts.txt"
    prompts.write_text("a red circle\nthree blue squares\n")
    values: dict[str, Any] = {
        "output": str(output),
        "adapters": {name: str(weights_folder().parent / f"adapters/{name}.safetensors") for name in NAMES},
        "rewards": {name: f"diffusion_blend.miniature.rewards:{name}" for name in NAMES},
        "methods": ["conditioned"],
        "weights": [[0.25, 0.75], [1, 0]],
        "conditioned": str(file),
        "images_per_point": 2,
        "steps": 2,
        "guidance_scale": 1.0,
        "batch": 2,
        "measure_kl": False,
        "save_images": 0,
        "base": BaseConfig(path=CONDITIONED_BASE),
        "prompts": PromptConfig(source=str(prompts)),
    }
    return SweepConfig(**{**values, **over})


def by_hand(file: Path, chunk: Any, steps: Any, weights: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same run with diffusers' own LoRA loading, and ``B A b`` added to every layer; latents and KL to the base."""
    pipeline = load_pipeline()
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    told = conditioned.base().encode([conditioned.with_preference(prompt, weights) for prompt in chunk.prompts])
    shares = told.prompt["preference"]

    def biased(layer: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        factors = [layer.lora_B["default_0"].weight, layer.lora_A["default_0"].weight]
        width = factors[1].shape[1]
        bias = shares @ conditioned.directions(width)
        if factors[1].ndim == 2:
            return output + layer.scaling["default_0"] * bias[:, None] @ (factors[0] @ factors[1]).T
        kernel = torch.einsum("or,rikl->oikl", factors[0][:, :, 0, 0], factors[1])
        pixels = bias[:, :, None, None].expand(-1, -1, *args[0].shape[2:])
        return output + layer.scaling["default_0"] * torch.nn.functional.conv2d(
            pixels, kernel, padding=kernel.shape[-1] // 2
        )

    layers = [m for _, m in pipeline.unet.named_modules() if hasattr(m, "lora_B")]
    assert len(layers) == LAYERS
    for layer in layers:
        layer.register_forward_hook(biased)
    base, x = load_pipeline().unet, chunk.noise[:, 0]
    kl = torch.zeros(len(x), dtype=torch.float64)
    for index, timestep in enumerate(steps.timesteps):
        with torch.no_grad():
            states = told.prompt["encoder_hidden_states"]
            output = pipeline.unet(x, timestep.expand(len(x)), encoder_hidden_states=states).sample
            moved = float(steps.output[index]) * (output - base(x, timestep.expand(len(x)), states).sample)
        kl += moved.double().square().sum((1, 2, 3)) / (2 * float(steps.std[index]) ** 2)
        x = float(steps.state[index]) * x + float(steps.output[index]) * output
        x = x + float(steps.std[index]) * chunk.noise[:, index + 1]
    return x, kl


def test_a_sweep_gives_it_the_preference_of_the_point(file: Path, tmp_path: Path) -> None:
    ready = prepare(settings(tmp_path / "out", file, measure_kl=True), Worker(torch.device("cpu"), True))
    chunk = ready._chunk(range(2))
    from diffusion_blend.evaluation.sweep.steps import Cost

    found = [ready.runner.sample(point, chunk, Cost()) for point in ready.points]
    for samples, weights in zip(found, ({"softness": 0.25, "warmth": 0.75}, {"softness": 1.0}), strict=True):
        latents, kl = by_hand(file, chunk, ready.runner.steps, weights)
        torch.testing.assert_close(samples.latents, latents, rtol=1e-3, atol=1e-3)
        assert samples.kl is not None and float(kl.min()) > 1e-3
        torch.testing.assert_close(samples.kl, kl, rtol=1e-2, atol=1e-6)
    assert not torch.allclose(found[0].latents, found[1].latents, atol=1e-2)


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"base": BaseConfig(path="diffusion_blend.miniature.base:shipped")}, "needs a base that reads the preference"),
        ({"conditioned": ""}, "no adapter file is given as conditioned"),
    ],
)
def test_a_sweep_that_cannot_tell_the_preference_is_refused(over: Any, text: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        prepare(settings(tmp_path / "out", file, **over), Worker(torch.device("cpu"), True))
