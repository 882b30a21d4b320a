"""The value function is a baseline: it lowers the noise of an advantage and must know nothing of the advantage's own return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.training.advantages import PromptMeans
from diffusion_blend.training.trainer import Trainer
from gaussian_model import GaussianModel
from no_float64 import WithoutFloat64
from torch import Tensor
from training_runs import make_trainer, same, settings


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0, 0, 0].double()


def trainer(folder: Path, buffer: int = 5120, **value: Any) -> Trainer:
    """A trainer of a Gaussian pixel whose reward is its value."""
    config = settings(
        folder,
        rewards={"brightness": 1.0},
        sampling={"steps": 20, "samples": 256, "batch": 256},
        algorithm={"kl_weight": 0.5, "buffer": buffer, "updates": 3},
        optimizer={"learning_rate": 0.02, "clip_norm": 1e9, "accumulate": 4},
        value={"updates": 10, "batch": 512, "learning_rate": 3e-3, "hidden": 32, **value},
        run={"iterations": 8, "stop_diversity": 0.0, "save_every": 10**6},
    )
    return make_trainer(config, GaussianModel(0.5, 0.6), {"brightness": brightness}, ["x"])


def iterated(made: Trainer, iterations: int) -> Any:
    """The algorithm after some iterations."""
    for iteration in range(iterations):
        made.algorithm.iterate(iteration)
    return made.algorithm


@pytest.mark.parametrize("iterations", [1, 2])
def test_an_advantage_does_not_read_a_fit_to_its_own_return(iterations: int, tmp_path: Path) -> None:
    """How well an iteration's fit goes changes the next iteration's update of the adapter, but not its own."""
    adapters, values = [], []
    for rate in (1e-4, 0.3):
        made = trainer(tmp_path / str(rate))
        algorithm = iterated(made, iterations - 1)
        algorithm.value.optimizer.param_groups[0]["lr"] = rate
        algorithm.iterate(iterations - 1)
        adapters.append([parameter.detach().clone() for parameter in made.context.model.trainable().values()])
        values.append(algorithm.value.value.state_dict())
    assert same(*adapters)
    assert any(bool(parameter.any()) for parameter in adapters[0])
    assert not same(*values)


def test_baselines_stay_with_their_steps(tmp_path: Path) -> None:
    """The replay buffer keeps each baseline as it was before the return was seen, and a checkpoint brings it back."""
    algorithm = iterated(trainer(tmp_path / "run", buffer=3 * 5120), 1)
    first = algorithm.buffer.baseline.clone()
    # No return was seen yet, so it is the mean of the other images, at all 20 steps of an image.
    assert bool((first.view(256, 20).std(1) == 0).all())
    assert 0 < first.std() < 0.02 * algorithm.buffer.returns.std()
    algorithm.iterate(1)
    assert torch.equal(algorithm.buffer.baseline[: len(first)], first)
    assert bool((algorithm.buffer.baseline[len(first) :].view(256, 20).std(1) > 0).all())
    restored = trainer(tmp_path / "restored", buffer=3 * 5120).algorithm
    restored.load_state_dict(algorithm.state_dict())
    assert torch.equal(restored.buffer.baseline, algorithm.buffer.baseline)


def test_baselines_need_no_float64_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = iterated(trainer(tmp_path / "run"), 2)
    expected = torch.full_like(algorithm.buffer.returns, 0.3)
    wanted = algorithm.value.with_baseline(algorithm.buffer, expected).baseline
    predicted = algorithm.value._predicted
    monkeypatch.setattr(algorithm.value, "_predicted", lambda steps: predicted(steps).as_subclass(WithoutFloat64))
    assert torch.equal(algorithm.value.with_baseline(algorithm.buffer, expected).baseline, wanted)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """The oldest have no baselines. None has prompts' means, and its value function expects whole returns: it starts anew."""
    algorithm = iterated(trainer(tmp_path / "run"), 2)
    saved = algorithm.state_dict()
    del saved["prompt_means"]
    saved["buffer"] = {name: column for name, column in saved["buffer"].items() if name != "baseline"}
    restored = trainer(tmp_path / "restored").algorithm
    restored.load_state_dict(saved)
    wanted = algorithm.value.with_baseline(algorithm.buffer, torch.zeros_like(algorithm.buffer.returns)).baseline
    assert torch.equal(restored.buffer.baseline, wanted)
    restored.iterate(2)
    late = restored.buffer.returns - restored.buffer.baseline
    assert abs(float(late.mean())) < 0.2 * float(restored.buffer.returns.mean().abs())


def test_the_baseline_lowers_the_noise(tmp_path: Path) -> None:
    """On steps that the fit has not seen, the advantage varies less than the return. Without a fit it varies as much."""
    shares = {}
    for updates in (0, 10):
        made = trainer(tmp_path / str(updates), updates=updates)
        fresh = iterated(made, 8).buffer
        shares[updates] = float((fresh.returns - fresh.baseline).var() / fresh.returns.var())
    print(f"share of the variance without a fit {shares[0]:.3f}, with one {shares[10]:.3f}")
    assert shares[0] == pytest.approx(1, abs=0.02)
    assert shares[10] < 0.7


NAMES = ["a", "b", "c", "d"]


def per_prompt(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Brightness, with far more between the prompts than within."""
    return brightness(images, prompts) + 10 * torch.tensor(
        [NAMES.index(prompt) for prompt in prompts], dtype=torch.float64
    )


def test_what_prompts_differ_in_is_not_in_the_first_advantages(tmp_path: Path) -> None:
    """A value function alone knows it only after many iterations."""
    config = settings(
        tmp_path,
        rewards={"per_prompt": 1.0},
        sampling={"steps": 10, "samples": 64, "batch": 64},
        algorithm={"buffer": 640},
        value={"updates": 0},
        run={"stop_diversity": 0.0, "save_every": 10**6},
    )
    buffer = iterated(make_trainer(config, GaussianModel(0.5, 0.6), {"per_prompt": per_prompt}, NAMES), 1).buffer
    within = torch.stack([buffer.returns[buffer.prompt == i].var() for i in range(4)]).mean()
    advantage = buffer.returns - buffer.baseline
    print(
        f"variance of returns {buffer.returns.var():.2f}, within prompts {within:.2f}, of advantages {advantage.var():.2f}"
    )
    assert buffer.returns.var() > 50 * within
    assert advantage.var() < 3 * within


def test_the_mean_of_a_prompt() -> None:
    """By hand: the prompt's other images, and one more that stands for all others."""
    means = PromptMeans(window=2)
    assert means.update(["a"], {"r": torch.tensor([4.0])})["r"].tolist() == [4.0]
    # a: (4 + 2) + the mean of 4, 2, 0 over 3;  a: (4 + 6) + the mean of 4, 6, 0;  b: the mean of 4, 6, 2
    given = {"r": torch.tensor([6.0, 2.0, 0.0])}
    assert means.update(["a", "a", "b"], given)["r"].tolist() == pytest.approx([(6 + 2) / 3, (10 + 10 / 3) / 3, 4.0])
    # The window of a is 6, 2 now; that of all is the iteration's three.
    assert means.expected(["a", "b", "new"])["r"].tolist() == pytest.approx(
        [(6 + 2 + 8 / 3) / 3, (0 + 8 / 3) / 2, 8 / 3]
    )


def test_a_mean_does_not_read_its_own_score() -> None:
    for changed in range(6):
        scores = torch.arange(6.0).square()
        other = scores.clone()
        other[changed] += 100
        prompts = ["a", "a", "b", "a", "c", "b"]
        one, two = (PromptMeans(4).update(prompts, {"r": values})["r"] for values in (scores, other))
        assert one[changed] == two[changed]
        assert not torch.equal(one, two)


def test_what_is_expected_follows_weights_and_preferences(tmp_path: Path) -> None:
    """Of a sum of rewards, and of rewards by preference, it is the sum of what is expected of each."""
    rewards = {"per_prompt": per_prompt, "brightness": brightness}
    config = settings(
        tmp_path,
        rewards={"per_prompt": 2.0, "brightness": 0.5},
        algorithm={"stacked": True, "buffer": 640, "kl_in_return": False},
        value={"updates": 0},
        sampling={"steps": 10, "samples": 64, "batch": 64},
        run={"stop_diversity": 0.0, "save_every": 10**6},
    )
    made = make_trainer(config, GaussianModel(0.5, 0.6), rewards, NAMES)
    algorithm = iterated(made, 1)
    buffer = algorithm.buffer
    preferences = made.context.preferences(buffer.prompt)
    assert preferences is not None
    expected = algorithm.prompt_means.expected(made.context.prompts.texts(buffer.prompt))
    assert torch.equal(
        algorithm._expected(buffer),
        2.0 * preferences[:, 0] * expected["per_prompt"] + 0.5 * preferences[:, 1] * expected["brightness"],
    )
    assert (buffer.returns - buffer.baseline).var() < 0.1 * buffer.returns.var()
