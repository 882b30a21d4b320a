"""Options of a run: schedules, averages, mixed rewards, a first adapter, negative prompts, stored prompts, trackers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusion_blend.artifacts.pictures import captioned_grid
from diffusion_blend.pipelines.adapter_files import read_adapter
from diffusion_blend.rewards.protocol import weighted_sum
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.command import parse
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.encoded_prompts import PROBE
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.policy import exact, gaussian_kl, gaussian_log_prob
from diffusion_blend.training.prompt_table import PromptTable
from diffusion_blend.training.reward_mix import RewardMix, learning_rate
from diffusion_blend.training.start_adapter import begin_with
from diffusion_blend.training.state import adapter_copy
from diffusion_blend.training.trainer import Trainer
from no_float64 import WithoutFloat64
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from training_runs import PROMPTS, redness, same, settings, tiny_trainer

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"sampling": {"steps": 3, "samples": 8, "batch": 4}, "algorithm": {"buffer": 24, "updates": 1}}


def options(output: Path, name: str = "dpok", **more: Any) -> Any:
    sections = {key: {**SMALL.get(key, {}), **more.pop(key, {})} for key in ("sampling", "algorithm")}
    return settings(output, name, **sections, **more)


def model_of(folder: Path, **adapter: Any) -> DiffusersModel:
    base = load_base(BaseConfig(path=str(folder)), CPU, allow_download=False)
    return DiffusersModel(base, AdapterConfig(**adapter), 0)


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "linear", "decay_iterations": 4}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "cosine", "decay_iterations": 2}, [1, 0.5, 0, 0, 0]),
    ],
)
def test_learning_rates(optimizer: dict[str, Any], wanted: list[float], tmp_path: Path) -> None:
    config = options(tmp_path, optimizer={"learning_rate": 2.0, **optimizer})
    assert [learning_rate(config, i) for i in range(5)] == pytest.approx([2 * w for w in wanted], abs=1e-6)


def test_a_rate_of_zero_leaves_the_adapter(tiny_sd: Path, tmp_path: Path) -> None:
    """The schedule reaches the optimizer: the second iteration has rate 0."""
    trainer = tiny_trainer(tiny_sd, options(tmp_path, optimizer={"schedule": "linear", "decay_iterations": 1}))
    trainer._iterate()
    first = adapter_copy(trainer.context.model)
    trainer._iterate()
    assert same(first, adapter_copy(trainer.context.model))
    assert any(float(value.abs().max()) > 0 for name, value in first.items() if "lora_B" in name)


def test_the_file_holds_the_average_of_the_iterations(tiny_sd: Path, tmp_path: Path) -> None:
    config = options(tmp_path / "run", run={"ema": 0.75, "iterations": 3, "save_every": 1})
    trainer = tiny_trainer(tiny_sd, config)
    seen: list[dict[str, Tensor]] = []
    iterate = trainer._iterate

    def recorded() -> dict[str, float]:
        figures = iterate()
        seen.append(adapter_copy(trainer.context.model))
        return figures

    trainer._iterate = recorded  # type: ignore[method-assign]
    file = load_file(trainer.run())
    average = seen[0]
    for later in seen[1:]:
        average = {name: 0.75 * average[name] + 0.25 * later[name] for name in average}
    found = {key: value for key, value in file.items() if "lora_up" in key}
    wanted = {name: value for name, value in average.items() if "lora_B" in name}
    assert len(found) == len(wanted) > 0
    assert sorted(float(v.double().sum()) for v in found.values()) == pytest.approx(
        sorted(float(v.double().sum()) for v in wanted.values()), rel=1e-5, abs=1e-9
    )
    assert same(adapter_copy(trainer.context.model), seen[-1])  # the trained adapter is back in its place
    resumed = tiny_trainer(tiny_sd, options(tmp_path / "run", run={"ema": 0.75, "iterations": 3}, resume=True))
    resumed._resume()
    assert same(resumed.state.average, trainer.state.average)


def total(mix: RewardMix, scores: dict[str, Tensor]) -> Tensor:
    return weighted_sum(mix.terms(scores), mix.weights)


def test_weights_move_to_their_end(tmp_path: Path) -> None:
    config = options(tmp_path, rewards={"a": 1.0, "b": 2.0}, rewards_end={"b": 0.0}, rewards_end_iteration=4)
    mix, found = RewardMix(config), []
    for mix.iteration in (0, 1, 4, 9):
        found.append(mix.weights["b"])
        assert mix.weights["a"] == 1
    assert found == pytest.approx([2, 1.5, 0, 0])
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0, 7.0])}
    mix.iteration = 2
    assert total(mix, scores).tolist() == pytest.approx([6.0, 9.0])


def test_running_statistics_are_those_of_all_scores(tmp_path: Path) -> None:
    mix = RewardMix(options(tmp_path, rewards={"a": 1.0, "b": 1.0}, normalise_rewards=True))
    draws = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30 + 7
    for part in draws:
        mix.observe({"a": part, "b": part * 1000})
    wanted = (draws[2] - draws.mean()) / draws.std(correction=0)
    torch.testing.assert_close(total(mix, {"a": draws[2], "b": draws[2] * 1000}), 2 * wanted)
    again = RewardMix(mix.config)
    again.load_state_dict(mix.state_dict())
    assert torch.equal(total(again, {"a": draws[0], "b": draws[1]}), total(mix, {"a": draws[0], "b": draws[1]}))


@pytest.mark.parametrize("name", ["dpok", "draft"])
def test_the_unit_of_a_reward_does_not_count_when_normalised(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    """A reward times 1000 trains the same adapter; without normalisation it does not."""
    found = {}
    for scale in (1.0, 1000.0):
        for normalised in (True, False):
            config = options(
                tmp_path / f"{scale}{normalised}", name, normalise_rewards=normalised, run={"iterations": 2}
            )
            config.rewards.clear()
            config.rewards["scaled"] = 1.0
            model = model_of(tiny_sd, rank=2, alpha=2.0, targets=["attn2.to_v"])

            def reward(images: Tensor, prompts: Any, scale: float = scale) -> Tensor:
                return scale * redness(images, prompts)

            trainer = Trainer(config, model, {"scaled": reward}, {}, PROMPTS, Accelerator(cpu=True))
            trainer._iterate()
            trainer._iterate()
            found[scale, normalised] = torch.cat([v.flatten() for v in adapter_copy(model).values()])
    gap = float((found[1.0, True] - found[1000.0, True]).abs().max())
    other = float((found[1.0, False] - found[1000.0, False]).abs().max())
    assert gap < 0.1 * other


def test_a_run_begins_at_an_adapter(tiny_sd: Path, tmp_path: Path) -> None:
    """The first adapter's update is exactly the file's, also with a larger rank and another alpha."""
    earlier = model_of(tiny_sd, rank=2, alpha=3.0, targets=["attn2.to_v", "attn1.to_q"])
    with torch.no_grad():
        for parameter in earlier.trainable().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    (tmp_path / "a.safetensors").write_bytes(earlier.export({}))
    base = load_base(BaseConfig(path=str(tiny_sd)), CPU, allow_download=False)
    start = read_adapter("adapter.start", str(tmp_path / "a.safetensors"), base.unet)
    lora = AdapterConfig(rank=4, alpha=1.0, targets=["attn2.to_v", "attn1.to_q", "to_k"])
    model = DiffusersModel(base, lora, 1)
    begin_with(model, start, lora)
    conditioning = model.encode_prompts(PROMPTS).prompt
    latents, times = torch.randn(2, *model.latent_shape), torch.tensor([10, 700])
    wanted = earlier.predict(latents, times, conditioning, base=False)
    torch.testing.assert_close(model.predict(latents, times, conditioning, base=False), wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - model.predict(latents, times, conditioning, base=True)).detach().abs().max()) > 1e-3
    small = AdapterConfig(rank=1, targets=["attn2.to_v", "attn1.to_q"])
    with pytest.raises(ValueError, match=r"set adapter\.rank to 2"):
        begin_with(model_of(tiny_sd, rank=1, targets=small.targets), start, small)
    with pytest.raises(ValueError, match=r"adapter\.targets \['attn2\.to_v'\] do not train"):
        begin_with(model_of(tiny_sd, targets=["attn2.to_v"]), start, AdapterConfig(targets=["attn2.to_v"]))


def test_a_negative_prompt_takes_the_place_of_the_empty_one(tiny_sd: Path) -> None:
    model = model_of(tiny_sd)
    table = PromptTable(model, PROMPTS, negative="a grey dog")
    found = table.conditioning(torch.tensor([1, 0, 1]))
    wanted = model.encode_prompts(["a grey dog"]).prompt["encoder_hidden_states"]
    for row in found.empty["encoder_hidden_states"]:
        torch.testing.assert_close(row[None], wanted)
    plain = PromptTable(model, PROMPTS).conditioning(torch.tensor([1, 0, 1]))
    torch.testing.assert_close(found.prompt, plain.prompt)
    assert not torch.allclose(plain.empty["encoder_hidden_states"], found.empty["encoder_hidden_states"])


def test_stored_prompts_are_encoded_once_and_read_back(tiny_sdxl: Path, tiny_sd: Path, tmp_path: Path) -> None:
    model = model_of(tiny_sdxl)
    asked: list[list[str]] = []

    class Counting:
        def encode_prompts(self, prompts: Any) -> Any:
            asked.append(list(prompts))
            return model.encode_prompts(prompts)

    prompts, rows = [f"number {i}" for i in range(20)], torch.tensor([3, 19, 3])
    plain = PromptTable(model, prompts).conditioning(rows)
    stored = PromptTable(Counting(), prompts, cache=str(tmp_path)).conditioning(rows)
    for one, other in ((plain.prompt, stored.prompt), (plain.empty, stored.empty)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain.features, stored.features)
    assert sum(map(len, asked)) == 22  # the first prompt has the empty one, and the probe names the encoders
    asked.clear()
    PromptTable(Counting(), ["new", "number 0", "number 4"], cache=str(tmp_path))  # another first prompt
    assert asked == [["new"], [PROBE], ["new"]]
    PromptTable(model_of(tiny_sd), prompts, cache=str(tmp_path))  # other encoders: a folder of their own
    assert len(list(tmp_path.iterdir())) == 2


def test_devices_without_float64_sum_on_the_cpu() -> None:
    sample, mean, other = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    std = torch.full((2, 1, 1, 1), 0.5)
    away = [tensor.as_subclass(WithoutFloat64) for tensor in (sample, mean, other, std)]
    with pytest.raises(TypeError, match="float64"):
        away[0].double()
    assert torch.equal(gaussian_log_prob(away[0], away[1], away[3]), gaussian_log_prob(sample, mean, std))
    assert torch.equal(gaussian_kl(away[1], away[2], away[3]), gaussian_kl(mean, other, std))
    assert exact(away[0]).dtype == torch.float64


def test_pictures_have_their_captions_below() -> None:
    images = torch.zeros(3, 3, 4, 4)
    plain = np.asarray(Image.open(io.BytesIO(captioned_grid(images, ["", "", ""]))))
    words = np.asarray(Image.open(io.BytesIO(captioned_grid(images, ["a red car\nredness 1.25", "x", "y"]))))
    assert words.shape[1] == 2 * 160
    assert plain[:160, :160].max() == 0 == words[:160, :160].max()  # the enlarged picture
    assert words[160:190, :160].min() < 100  # letters on white


def test_trackers_and_progress(tiny_sd: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = options(tmp_path / "run", run={"iterations": 2, "watch_every": 1, "watch_samples": 2})
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path / "run"))
    model = model_of(tiny_sd, rank=2, targets=["attn2.to_v"])
    trainer = Trainer(config, model, {"redness": redness}, {}, PROMPTS, accelerator)
    shown: list[tuple[str, int, int]] = []
    trainer.context.progress.show = lambda *step: shown.append(step)
    trainer.run()
    accelerator.end_training()
    assert {("sampling", 4, 8), ("sampling", 8, 8), ("update", 1, 1)} <= set(shown)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert "watched" in events.Tags()["images"][0]
    assert [event.step for event in events.Scalars("reward")] == [1, 2]
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.trackers", "[comet]"], r"run\.trackers has 'comet': choose from tensorboard, wandb"),
        (["--optimizer.schedule", "cosine"], r"needs optimizer\.decay_iterations"),
        (["--rewards_end", '{"aesthetic": 1.0}'], "which is not among the rewards"),
        (["--rewards_end", '{"colourfulness": 0.0}'], "needs rewards_end_iteration"),
        (["--adapter.start", "nowhere.safetensors"], r"adapter\.start 'nowhere\.safetensors': no such file"),
        (["--base.quantise", "nf4", "--base.path", "a.safetensors"], "must be a hub id or a diffusers folder"),
    ],
)
def test_options_that_cannot_work(words: list[str], message: str, tmp_path: Path) -> None:
    config = parse(["--output", str(tmp_path / "new"), "--rewards", '{"colourfulness": 1.0}', *words])
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize(("package", "option"), [("bitsandbytes", "base"), ("wandb", "run")])
def test_packages_that_are_not_there(
    package: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    change: dict[str, Any] = {"base": {"quantise": "int8"}, "run": {"trackers": ["wandb"]}}
    with pytest.raises(ValueError, match=f"pip install {package}"):
        check_config(options(tmp_path / "new", rewards={"colourfulness": 1.0}, **{option: change[option]}))


def test_the_earlier_name_of_the_control_variate(tmp_path: Path) -> None:
    needed = ["--output", str(tmp_path / "new"), "--rewards", '{"colourfulness": 1.0}']
    assert parse(needed).algorithm.control_variate
    assert not parse([*needed, "--algorithm.take_off_base_error", "false"]).algorithm.control_variate
    (tmp_path / "old.yaml").write_text("algorithm:\n  name: rwr\n  take_off_base_error: false\n")
    config = parse([*needed, "--config", str(tmp_path / "old.yaml")])
    assert (config.algorithm.name, config.algorithm.control_variate) == ("rwr", False)
