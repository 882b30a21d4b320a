"""Sweeps on diffusers bases: every method against diffusers and peft themselves."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusion_blend.evaluation.sweep.steps import Gaussian, gaussian_divergence
from diffusion_blend.pipelines.adapter_files import read_adapter
from diffusion_blend.training.randomness import keyed_generator
from safetensors.torch import load_file, save_file
from sweeps import PROMPTS, latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from torch import Tensor

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


World = tuple[Path, dict[str, Path]]
"""A base's folder and its adapters' files by name."""


def make_world(folder: Path, save: Callable[[Path], Path]) -> World:
    torch.set_num_threads(1)
    base = save(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sd"), save_tiny_sd)


@pytest.fixture(scope="module")
def xl_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sdxl"), save_tiny_sdxl)


def diffusers_latents(base: Path, loras: dict[str, tuple[Path, float]], seed: int, count: int) -> Tensor:
    """What diffusers' own pipeline makes, peft's adapters active with these weights, for the sweep's noise."""
    return _diffusers_latents(base, tuple(loras.items()), seed, count)


@functools.cache
def _diffusers_latents(base: Path, named: tuple[tuple[str, tuple[Path, float]], ...], seed: int, count: int) -> Tensor:
    loras = dict(named)
    pipeline: Any = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    # Latents are not clipped to -1..1, which DDIMScheduler's default would do to a configuration that is silent on it.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    for name, (path, _) in loras.items():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    if loras:
        pipeline.set_adapters(list(loras), [weight for _, weight in loras.values()])
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    # A list of generators: each image draws its starting latent and then one noise a step from its own.
    noise = [keyed_generator(seed, "sweep", prompt, i // len(PROMPTS)) for i, prompt in enumerate(prompts)]
    return pipeline(
        prompts,
        height=8,
        width=8,
        num_inference_steps=5,
        eta=1.0,
        guidance_scale=3.0,
        generator=noise,
        output_type="latent",
    ).images


def test_base_is_diffusers_own_pipeline(world: World, tmp_path: Path) -> None:
    base, adapters = world
    ready = sweep(settings(tmp_path / "out", base, adapters, methods=["base"], seed=7))
    torch.testing.assert_close(latents(ready, 0, range(5)), diffusers_latents(base, {}, 7, 5), **CLOSE)


def test_sdxl_is_diffusers_own_pipeline_without_and_with_adapters(xl_world: World, tmp_path: Path) -> None:
    base, adapters = xl_world
    over = {"methods": ["base", "soup"], "weights": [[0.3, 0.7]]}
    ready = sweep(settings(tmp_path / "out", base, adapters, **over))
    loras = {"a": (adapters["a"], 0.3), "b": (adapters["b"], 0.7)}
    torch.testing.assert_close(latents(ready, 0, range(3)), diffusers_latents(base, {}, 0, 3), **CLOSE)
    torch.testing.assert_close(latents(ready, 1, range(3)), diffusers_latents(base, loras, 0, 3), **CLOSE)


@pytest.mark.parametrize("method", ["blend", "stochastic", "soup", "early", "factor-soup", "msdda"])
def test_all_weight_on_one_adapter_is_that_adapter_in_diffusers(world: World, tmp_path: Path, method: str) -> None:
    base, adapters = world
    ready = sweep(settings(tmp_path / "out", base, adapters, methods=[method], weights=[[0, 1]]))
    expected = diffusers_latents(base, {"b": (adapters["b"], 1.0)}, 0, 3)
    got = latents(ready, 0, range(3))
    torch.testing.assert_close(got, expected, **CLOSE)
    assert float((got - diffusers_latents(base, {}, 0, 3)).abs().max()) > 0.01  # the adapter does something


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_soup_is_pefts_weighted_adapters(world: World, tmp_path: Path, scale: float) -> None:
    base, adapters = world
    over = {"methods": ["soup"], "weights": [[0.3, 0.7]], "kl_scales": [scale]}
    ready = sweep(settings(tmp_path / "out", base, adapters, **over))
    loras = {"a": (adapters["a"], 0.3 * scale), "b": (adapters["b"], 0.7 * scale)}
    torch.testing.assert_close(latents(ready, 0, range(3)), diffusers_latents(base, loras, 0, 3), **CLOSE)


def test_six_adapters_at_once_are_pefts_six(world: World, tmp_path: Path) -> None:
    base, _ = world
    adapters = {f"r{seed}": write_adapter(tmp_path, base, f"r{seed}", seed) for seed in range(6)}
    weights = [0.05, 0.1, 0.15, 0.2, 0.2, 0.3]
    ready = sweep(settings(tmp_path / "out", base, adapters, methods=["soup"], weights=[weights]))
    loras = {name: (path, weight) for (name, path), weight in zip(adapters.items(), weights, strict=True)}
    torch.testing.assert_close(latents(ready, 0, range(3)), diffusers_latents(base, loras, 0, 3), **CLOSE)


def test_factor_soup_is_the_adapter_of_averaged_factors(world: World, tmp_path: Path) -> None:
    base, adapters = world
    first, second = (load_file(path) for path in adapters.values())
    averaged = {
        key: value if key.endswith("alpha") else 0.3 * value + 0.7 * second[key] for key, value in first.items()
    }
    save_file(averaged, tmp_path / "averaged.safetensors")
    ready = sweep(settings(tmp_path / "out", base, adapters, methods=["factor-soup"], weights=[[0.3, 0.7]]))
    expected = diffusers_latents(base, {"averaged": (tmp_path / "averaged.safetensors", 1.0)}, 0, 3)
    torch.testing.assert_close(latents(ready, 0, range(3)), expected, **CLOSE)


def test_blend_is_the_step_by_step_sum_of_diffusers_predictions(world: World, tmp_path: Path) -> None:
    """One step from the common noise: x0 is affine in the predictions, so the latents blend as they do."""
    base, adapters = world
    over = {"weights": [[0.3, 0.7]], "kl_scales": [1.5], "steps": 1}
    ready = sweep(settings(tmp_path / "out", base, adapters, methods=["base", "blend"], **over))
    alone = sweep(settings(tmp_path / "one", base, adapters, weights=[[1, 0], [0, 1]], steps=1))
    parts = (latents(ready, 0, range(3)), latents(alone, 0, range(3)), latents(alone, 1, range(3)))
    expected = -0.5 * parts[0] + 0.45 * parts[1] + 1.05 * parts[2]
    # The step's noise enters every part with the same factor, and -0.5 + 0.45 + 1.05 = 1.
    torch.testing.assert_close(latents(ready, 1, range(3)), expected, **CLOSE)


def test_msdda_at_equal_etas_is_blend_and_at_others_is_not(world: World, tmp_path: Path) -> None:
    base, adapters = world
    over = {"methods": ["blend", "msdda"], "weights": [[0.3, 0.7]], "kl_scales": [0.8]}
    equal = sweep(settings(tmp_path / "equal", base, adapters, **over))
    torch.testing.assert_close(latents(equal, 0, range(3)), latents(equal, 1, range(3)), **CLOSE)
    other = sweep(settings(tmp_path / "other", base, adapters, etas={"a": 0.3}, **over))
    assert float((latents(other, 0, range(3)) - latents(other, 1, range(3))).abs().max()) > 0.01


def test_stochastic_draws_of_a_picture_do_not_depend_on_its_batch(world: World, tmp_path: Path) -> None:
    base, adapters = world
    over = {"methods": ["stochastic", "stochastic-independent"], "weights": [[0.5, 0.5]]}
    ready = sweep(settings(tmp_path / "out", base, adapters, **over))
    together, alone = latents(ready, 0, range(6)), latents(ready, 0, [4])
    torch.testing.assert_close(together[4:5], alone, **CLOSE)
    assert float((latents(ready, 1, range(6)) - together).abs().max()) > 0.01


def test_mixture_adapter_is_used_for_its_weights_only(world: World, tmp_path: Path) -> None:
    base, adapters = world
    mixture = write_adapter(tmp_path, base, "mixture", 5)
    over = {"methods": ["morl"], "weights": [[1, 0], [0.5, 0.5], [0.25, 0.75]], "morl": {"1,1": str(mixture)}}
    ready = sweep(settings(tmp_path / "out", base, adapters, **over))
    assert [point.weights for point in ready.points] == [(1.0, 0.0), (0.5, 0.5)]
    expected = diffusers_latents(base, {"mixture": (mixture, 1.0)}, 0, 3)
    torch.testing.assert_close(latents(ready, 1, range(3)), expected, **CLOSE)


def test_kl_of_equal_and_unequal_gaussians_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    for std in (0.7, 0.4):
        ours = gaussian_divergence(Gaussian(means[0], std), Gaussian(means[1], 0.7))
        pair = [torch.distributions.Normal(mean, s) for mean, s in zip(means, (std, 0.7), strict=True)]
        torch.testing.assert_close(ours, torch.distributions.kl_divergence(*pair).flatten(1).sum(1))


def test_kl_is_zero_for_the_base_and_costs_of_methods_are_told_apart(world: World, tmp_path: Path) -> None:
    base, adapters = world
    methods = ["base", "blend", "stochastic", "soup", "early", "factor-soup", "msdda"]
    rows = sweep(settings(tmp_path / "out", base, adapters, methods=methods)).run()
    by_method = {row["method"]: row for row in rows}
    assert {method: (row["calls"], row["kl_calls"]) for method, row in by_method.items()} == {
        "base": (5, 0),  # its own prediction is the base's
        "blend": (10, 5 - silent(world)),
        "stochastic": (5, 5 - silent(world)),
        "soup": (5, 5 - silent(world)),
        "early": (7, 5 - silent(world)),  # two adapters and the soup at the first step
        "factor-soup": (5, 5 - silent(world)),
        "msdda": (10, 5 - silent(world)),
    }
    assert by_method["base"]["kl"] == 0
    assert all(by_method[method]["kl"] > 0.01 for method in methods[1:])
    half = sweep(settings(tmp_path / "half", base, adapters, methods=["blend"], kl_scales=[0.5])).run()
    assert {(row["calls"], row["kl_calls"]) for row in half} == {(15, 0)}  # the base is one of its rows


def silent(world: World) -> int:
    """Steps without noise: the tiny SD's last one."""
    config = json.loads((world[0] / "scheduler/scheduler_config.json").read_text())
    return int(config.get("set_alpha_to_one", True))


def test_a_lora_of_every_kind_of_layer_is_read_as_peft_reads_it(tmp_path: Path) -> None:
    base = save_tiny_sd(tmp_path / "base")
    targets = ["to_q", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv_in", "time_emb_proj", "linear_1"]
    path = write_adapter(tmp_path, base, "wide", 3, rank=3, alpha=1.5, targets=targets)
    pipeline: Any = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    adapter = read_adapter("wide", str(path), pipeline.unet)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="wide")
    changes = {
        name: module.get_delta_weight("wide").detach()
        for name, module in pipeline.unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(changes) == set(adapter.update)
    for name, [pair] in adapter.update.items():
        ours = (pair.up @ pair.down.flatten(1)).view(changes[name].shape)
        torch.testing.assert_close(ours, changes[name])
    assert adapter.kl_weight == pytest.approx(0.4)
