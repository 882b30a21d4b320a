"""Adapters trained to be stacked: in a corner a run of one reward, between the corners a model for the mixture."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusion_blend.training.algorithms import ALGORITHMS
from diffusion_blend.training.algorithms.grpo import bounded_advantages, group_advantages
from diffusion_blend.training.algorithms.nft import contrastive_loss
from diffusion_blend.training.checkpoints import list_checkpoints, load_state, newest_whole
from diffusion_blend.training.checks import check_config
from diffusion_blend.training.collection import Collector
from diffusion_blend.training.config import BaseConfig, TrainConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.protocol import GATES
from diffusion_blend.training.stacking import CORNERS, StackedPrompts, draw_preference
from diffusion_blend.training.state import adapter_copy
from diffusion_blend.training.trainer import Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from training_runs import make_trainer, redness, same, settings

REWARDS = {"redness": 1.0, "greenness": 1.0}
STACKED = ("dpok", "grpo", "nft", "rwr", "draft")


def greenness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return 10 * (images[:, 1] - images[:, [0, 2]].mean(1)).mean((1, 2))


KNOWN = {"redness": redness, "greenness": greenness}


def small(output: Path, name: str, rewards: dict[str, float], *, stacked: bool = True, **over: Any) -> TrainConfig:
    return settings(
        output,
        name,
        rewards=rewards,
        sampling={"steps": 3, "samples": 8, "batch": 4, **over.pop("sampling", {})},
        algorithm={
            "buffer": 24,
            "updates": 2,
            "kl_weight": 0.5,
            "group": 4,
            "stacked": stacked,
            **over.pop("algorithm", {}),
        },
        optimizer={"learning_rate": 5e-3, "clip_norm": 1e9, "accumulate": 2},
        value={"batch": 8, "updates": 1, "hidden": 8, **over.pop("value", {})},
        run={"iterations": 2, "save_every": 1, **over.pop("run", {})},
        **over,
    )


def trainer(folder: Path, config: TrainConfig) -> Trainer:
    base = load_base(BaseConfig(path=str(folder)), torch.device("cpu"), allow_download=False)
    members = len(config.rewards) if config.algorithm.adapter_per_reward else 1
    model = DiffusersModel(base, config.adapter, config.run.seed, members=members)
    return make_trainer(config, model, {name: KNOWN[name] for name in config.rewards})


@pytest.fixture(scope="module")
def run(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A short run with the files that it leaves."""
    of = trainer(tiny_sd, small(tmp_path_factory.mktemp("stacked") / "run", "draft", REWARDS))
    assert of.run() == of.output
    return of


def test_preferences_are_drawn_as_documented() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_preference(3, generator) for _ in range(4000)])
    assert bool((drawn >= 0).all())
    torch.testing.assert_close(drawn.sum(1), torch.ones(4000, dtype=torch.float64))
    sizes = Counter((drawn > 0).sum(1).tolist())
    expected = {1: CORNERS, 2: (1 - CORNERS) / 2, 3: (1 - CORNERS) / 2}
    for size, share in expected.items():
        assert abs(sizes[size] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    corner, pair, inside = (drawn[(drawn > 0).sum(1) == size] for size in (1, 2, 3))
    assert (corner.mean(0) - 1 / 3).abs().max() < 0.06
    # Uniform on an edge: the larger weight is uniform on .5 to 1. Uniform inside: each weight has variance 1 / 18.
    assert pair.max(1).values.mean() == pytest.approx(0.75, abs=0.015)
    torch.testing.assert_close(inside.var(0), torch.full((3,), 1 / 18, dtype=torch.float64), atol=0.006, rtol=0)


def test_rows_say_prompt_and_preference(tiny_sd: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_sd)), torch.device("cpu"), allow_download=False)
    table = StackedPrompts(DiffusersModel(base, settings(Path("x")).adapter, 0), ["a", "b", "c"], 2, seed=3)
    rows = table.shuffled_rows(0, 5, 6)
    assert table.texts(rows) == table.texts(table.plain(rows)) and int(rows.min()) >= 9
    preferences = table.preferences(rows)
    assert len({tuple(row) for row in preferences.tolist() if 0 < row[0] < 1}) > 1
    assert torch.equal(preferences, table.preferences(table.shuffled_rows(0, 5, 6)))  # a function of the place alone
    assert table.preferences(torch.tensor([1])).tolist() == [[0.5, 0.5]]
    assert table.preferences(table.at_corner(rows[:1], 1)).tolist() == [[0.0, 1.0]]
    conditioning = table.conditioning(rows)
    assert torch.equal(conditioning.prompt[GATES], preferences.float()) and GATES in conditioning.empty


def gradients(of: Trainer) -> list[dict[str, Tensor]]:
    """The gradients of the first iteration's optimizer steps."""
    found = []
    step = of.algorithm.optimizer.optimizer.step  # pyright: ignore

    def recorded(*arguments: Any) -> Any:
        found.append({name: value.grad.clone() for name, value in of.context.model.trainable().items()})
        return step(*arguments)

    of.algorithm.optimizer.optimizer.step = recorded  # pyright: ignore
    of.algorithm.iterate(0)
    return found


@pytest.mark.parametrize("name", STACKED)
def test_in_a_corner_the_gradient_is_that_of_the_single_reward(
    name: str, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over: dict[str, Any] = {"sampling": {"guidance_scale": 3.0}, "value": {"updates": 0}}  # V has other inputs
    alone = gradients(trainer(tiny_sd, small(tmp_path / "alone", name, {"redness": 1.5}, stacked=False, **over)))

    def corner(table: StackedPrompts, number: int) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    monkeypatch.setattr(StackedPrompts, "_preference", corner)
    if name == "rwr":  # one preference for all: the rows are then drawn as they are without preferences
        original = type(trainer(tiny_sd, small(tmp_path / "x", name, REWARDS)).algorithm)._prompts_and_weights

        def first(self: Any, buffer: Any, step: int) -> tuple[Tensor, Tensor]:
            prompt, weights = original(self, buffer, step)
            assert torch.equal(weights, weights[:1].expand_as(weights))
            return prompt[:1], weights[:1]

        monkeypatch.setattr("diffusion_blend.training.algorithms.rwr.Rwr._prompts_and_weights", first)
    config = small(tmp_path / "both", name, {"redness": 1.5, "greenness": 1.0}, **over)
    both = gradients(trainer(tiny_sd, config))
    assert len(both) == len(alone)
    for found, expected in zip(both, alone, strict=True):
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key.replace("default", "member_0")], gradient, rtol=1e-5, atol=1e-8)
            assert float(found[key.replace("default", "member_1")].abs().max()) == 0
    assert any(float(gradient.abs().max()) > 0 for gradient in alone[0].values())


def test_a_loss_for_each_reward_weighted_by_the_preference_is_the_loss_of_the_weighted_optimality() -> None:
    generator = torch.Generator().manual_seed(0)
    output, old, target = (torch.randn(6, 2, 3, 3, generator=generator) for _ in range(3))
    optimality, divisor = torch.rand(2, 6, generator=generator), torch.rand(6, generator=generator) + 0.5
    w = torch.tensor([0.3, 0.7])
    losses = [contrastive_loss(output, old, target, r, divisor, 0.5) for r in optimality]
    together = contrastive_loss(output, old, target, w @ optimality, divisor, 0.5)
    torch.testing.assert_close(together, w[0] * losses[0] + w[1] * losses[1])


def test_advantages_are_bounded_for_each_reward_before_they_are_weighted(tiny_sd: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "run", "grpo", REWARDS, algorithm={"advantage_clip": 0.5})
    of = trainer(tiny_sd, config)
    data = of.algorithm.collector.from_policy(0, measure_kl=False)  # pyright: ignore
    preference = of.context.preferences(data.prompt)
    assert preference is not None
    assert bool((preference.view(2, 4, 2) == preference.view(2, 4, 2)[:, :1]).all())  # a group has one preference
    expected = sum(
        preference[:, i] * group_advantages(data.scores, {name: 1.0}, 4).clamp(-0.5, 0.5)
        for i, name in enumerate(REWARDS)
    )
    torch.testing.assert_close(bounded_advantages(of.context, data, 0.5), expected)


def test_the_files_stacked_at_a_preference_are_the_trained_model(run: Trainer, tiny_sd: Path) -> None:
    """diffusers adds the files up with strengths w; the trainer's own network is called with gates w."""
    of, model, w = run, run.context.model, (0.3, 0.7)
    files = [run.output / name for name in ("stacked-1-redness.safetensors", "stacked-2-greenness.safetensors")]
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 1])
    text = of.context.prompts.encoded(rows).prompt
    timesteps = torch.tensor([500, 500])
    gates = torch.tensor([w, (1.0, 0.0)])
    with torch.no_grad():
        found = model.predict(latents, timesteps, {**text, GATES: gates}, base=False)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    assert isinstance(pipeline, StableDiffusionPipeline)
    for i, file in enumerate(files):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{i}")
    for image, strengths in enumerate((w, (1.0, 0.0))):
        pipeline.set_adapters(["a0", "a1"], list(strengths))
        with torch.no_grad():
            expected = pipeline.unet(
                latents[image : image + 1], 500, encoder_hidden_states=text["encoder_hidden_states"][image : image + 1]
            ).sample
        torch.testing.assert_close(found[image : image + 1], expected, rtol=1e-5, atol=1e-5)
    pipeline.disable_lora()
    with torch.no_grad():
        base = pipeline.unet(latents[:1], 500, encoder_hidden_states=text["encoder_hidden_states"][:1]).sample
    assert float((base - found[:1]).abs().max()) > 1e-3


def test_files_name_their_group(run: Trainer) -> None:
    groups = []
    for folder in (run.output, run.output / "checkpoints" / "checkpoint-00000001"):
        for number, name in enumerate(REWARDS, 1):
            with safe_open(folder / f"stacked-{number}-{name}.safetensors", "pt") as file:
                header = file.metadata()
            assert header["diffusion_blend.reward"] == name
            group = json.loads(header["diffusion_blend.group"])
            assert (group["kind"], group["member"], group["rewards"]) == ("stacked", number - 1, list(REWARDS))
            groups.append(group["id"])
    assert groups[0] == groups[1] != groups[2] == groups[3]  # a checkpoint's files do not go with the last ones


@pytest.mark.parametrize("name", ["dpok", "nft", "rwr", "draft"])
def test_resumed_ends_bit_identical(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    def trained(folder: str, iterations: int, resume: bool = False) -> Trainer:
        config = small(tmp_path / folder, name, REWARDS, resume=resume, run={"iterations": iterations})
        of = trainer(tiny_sd, config)
        of.run()
        return of

    whole, _ = trained("whole", 2), trained("cut", 1)
    resumed = trained("cut", 2, resume=True)
    assert same(adapter_copy(whole.context.model), adapter_copy(resumed.context.model))
    states = [load_state(list_checkpoints(tmp_path / which / "checkpoints")[-1]) for which in ("whole", "cut")]
    assert same(states[0]["algorithm"], states[1]["algorithm"])
    files = [load_file(tmp_path / which / "stacked-2-greenness.safetensors") for which in ("whole", "cut")]
    assert same(files[0], files[1])


def test_a_damaged_member_of_a_checkpoint_is_noticed(run: Trainer, tmp_path: Path) -> None:
    shutil.copytree(run.output / "checkpoints", tmp_path / "checkpoints")
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert newest_whole(newest.parent) == newest
    file = newest / "stacked-2-greenness.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert newest_whole(newest.parent) != newest


def test_both_rewards_rise_where_they_are_asked_for(tiny_sd: Path, tmp_path: Path) -> None:
    """After one training each corner has more of its own reward than the other corner, and all gain by their own r(w)."""
    config = small(
        tmp_path / "run",
        "draft",
        REWARDS,
        sampling={"samples": 16, "batch": 16},
        algorithm={"kl_weight": 0.01},
        run={"iterations": 20, "save_every": 100},
    )
    config = TrainConfig(
        **{**vars(config), "optimizer": type(config.optimizer)(learning_rate=2e-2, clip_norm=1.0, accumulate=1)}
    )
    of = trainer(tiny_sd, config)
    of.run()
    table = of.context.prompts
    assert isinstance(table, StackedPrompts)

    collector = Collector(of.context)

    def rewards(rows: Tensor, *, base: bool = False) -> Tensor:
        runs = collector.sample(rows, [("test", i) for i in range(64)], measure_kl=False, base=base)
        return torch.stack([redness(runs.images, []).double().mean(), greenness(runs.images, []).double().mean()])

    plain = torch.arange(64) % 2
    before, even = rewards(plain, base=True), rewards(plain)
    red, green = rewards(table.at_corner(plain, 0)), rewards(table.at_corner(plain, 1))
    print("base", before.tolist(), "red", red.tolist(), "even", even.tolist(), "green", green.tolist())
    assert red[0] > green[0] + 0.2 and green[1] > red[1] + 0.2
    assert red[0] > before[0] + 0.1 and green[1] > before[1] + 0.1 and even.sum() > before.sum() + 0.1


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="ddpo cannot train several adapters at once, because .* take one of dpok, grpo"
    ):
        check_config(small(tmp_path / "a", "ddpo", REWARDS))
    with pytest.raises(ValueError, match="there is only redness: give at least two rewards"):
        check_config(small(tmp_path / "b", "draft", {"redness": 1.0}))
    with pytest.raises(ValueError, match="weight of reward 'greenness' is 0, so its adapter would learn nothing"):
        check_config(small(tmp_path / "c", "draft", {"redness": 1.0, "greenness": 0.0}))
    with pytest.raises(ValueError, match="leave adapter.start out"):
        check_config(small(tmp_path / "d", "draft", REWARDS, adapter={"start": str(tmp_path)}))
    assert {name for name, entry in ALGORITHMS.items() if not entry.not_stacked} == set(STACKED)
    with pytest.raises(ValueError, match="both true"):
        check_config(small(tmp_path / "e", "rwr", REWARDS, algorithm={"separate": True}))


def test_separate_adapters_of_one_run_are_each_for_their_reward_alone(tiny_sd: Path, tmp_path: Path) -> None:
    """No image mixes rewards, one sampling of the base serves all, and the files are ordinary ones."""
    config = small(tmp_path / "run", "rwr", REWARDS, stacked=False, algorithm={"separate": True})
    of = trainer(tiny_sd, config)
    table = of.context.prompts
    assert isinstance(table, StackedPrompts)
    drawn = table.preferences(table.with_drawn(torch.zeros(200, dtype=torch.int64), torch.arange(200)))
    assert set(map(tuple, drawn.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    sampled = []
    from_base = of.algorithm.collector.from_base  # pyright: ignore

    def counted(iteration: int) -> Any:
        sampled.append(iteration)
        return from_base(iteration)

    of.algorithm.collector.from_base = counted  # pyright: ignore
    assert of.run() == of.output
    assert sampled == [0, 1]  # once an iteration, for both rewards
    for number, name in enumerate(REWARDS, 1):
        path = of.output / f"adapter-{number}-{name}.safetensors"
        with safe_open(path, "pt") as file:
            header = file.metadata()
        trained = any(float(tensor.abs().max()) > 0 for key, tensor in load_file(path).items() if "up" in key)
        assert header["diffusion_blend.reward"] == name and "diffusion_blend.group" not in header and trained


def test_an_adapter_trained_beside_others_takes_nothing_from_their_rewards(tiny_sd: Path, tmp_path: Path) -> None:
    """With another second reward the first adapter is bit for bit the same (gradients here are below ``clip_norm``)."""

    def first(folder: str, rewards: dict[str, float]) -> dict[str, Tensor]:
        config = small(tmp_path / folder, "draft", rewards, stacked=False, algorithm={"separate": True})
        check_config(config)
        of = trainer(tiny_sd, config)
        of.run()
        return load_file(of.output / "adapter-1-redness.safetensors")

    assert same(first("a", REWARDS), first("b", {"redness": 1.0, "greenness": -3.0}))
