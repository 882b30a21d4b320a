"""Sweeps with schedulers of diffusers: parity with the plain pipeline, noise for each picture, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusion_blend.evaluation.sweep.checks import check_config, scheduler_names
from diffusion_blend.pipelines import BlendedPipeline
from diffusion_blend.training.config import BaseConfig
from safetensors.torch import load_file
from sweeps import PROMPTS, latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd
from tiny_transformers import save_tiny_sd3, save_tiny_z_image

World = tuple[Path, dict[str, Path]]
STEPS = 5
NOISE_SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": {},
    "LMSDiscreteScheduler": {},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
    "HeunDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
}
FLOW_SCHEDULERS = ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sd")
    base = save_tiny_sd(folder / "base")
    return base, {name: write_adapter(folder, base, name, seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def pipe(world: World) -> Any:
    loaded: Any = diffusers.DiffusionPipeline.from_pretrained(world[0], local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def scheduled(output: Path, world: World, name: str, **over: Any) -> Any:
    values = {"scheduler": name, "eta": 0.7, "measure_kl": False, "guidance_scale": 3.0, "steps": STEPS, **over}
    return settings(output, *world, **values)


def made_by(pipe: Any, ready: Any, side: int, **over: Any) -> torch.Tensor:
    """The pipeline's own latents of the sweep's prompts from the sweep's noise."""
    chunk = ready._chunk(range(3))
    arguments = {
        "prompt": list(PROMPTS),
        "height": side,
        "width": side,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "latents": chunk.noise[:, 0],
        "generator": ready.runner.scheduled.generators(chunk),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **over}).images


@pytest.mark.parametrize("name", NOISE_SCHEDULERS)
def test_the_base_is_the_plain_pipeline_with_that_scheduler(name: str, world: World, pipe: Any, tmp_path: Path) -> None:
    options = NOISE_SCHEDULERS[name]
    config = scheduled(tmp_path / "out", world, name, methods=["base"], scheduler_options=options)
    ready, own = sweep(config), pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(own.config, **options)
    try:
        wanted = made_by(pipe, ready, 8, eta=0.7)
    finally:
        pipe.scheduler = own
    torch.testing.assert_close(latents(ready, 0, [0, 1, 2]), wanted, rtol=1e-5, atol=1e-5)


def test_a_picture_does_not_depend_on_those_beside_it_and_starts_as_with_ddim(world: World, tmp_path: Path) -> None:
    methods = ["base", "blend", "stochastic", "early", "factor-soup", "switch"]
    ready = sweep(
        scheduled(tmp_path / "out", world, "EulerAncestralDiscreteScheduler", methods=methods, switch_steps=1)
    )
    for point in range(len(ready.points)):
        together = latents(ready, point, [0, 1, 2, 3])
        apart = torch.cat([latents(ready, point, [image]) for image in range(4)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    plain = sweep(settings(tmp_path / "plain", *world))
    assert torch.equal(plain._chunk(range(4)).noise[:, 0], ready._chunk(range(4)).noise[:, 0])


def test_a_blend_is_the_blended_pipeline_and_the_folder_names_the_scheduler(
    world: World, pipe: Any, tmp_path: Path
) -> None:
    name = "DPMSolverMultistepScheduler"
    config = scheduled(tmp_path / "out", world, name, methods=["blend", "base"], weights=[[0.3, 0.7]])
    ready, own = sweep(config), pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(own.config)
    try:
        # Tensors have no KL weights, by which the pipeline's weights would count; the sweep counts in the rewards' units.
        blended: Any = BlendedPipeline(pipe, {name: load_file(file) for name, file in world[1].items()})
        wanted = made_by(blended, ready, 8, weights=[0.3, 0.7])
    finally:
        pipe.scheduler = own
    torch.testing.assert_close(latents(ready, 0, [0, 1, 2]), wanted, rtol=1e-5, atol=1e-5)
    ready.run()
    rows = list(csv.DictReader((tmp_path / "out/samples.csv").open()))
    assert {row["kl"] for row in rows} == {""}
    assert {row["method"]: float(row["calls"]) for row in rows} == {"blend": 2 * STEPS, "base": STEPS}
    assert json.loads((tmp_path / "out/settings.json").read_text())["scheduler"] == name
    with pytest.raises(ValueError, match=f"scheduler: {name!r}, now ''"):
        sweep(replace(config, scheduler=""))


# diffusers' Z-Image pipeline gives its times as a list, which UniPC and DPM-Solver of diffusers cannot multiply.
FLOWS = [(save_tiny_sd3, 3.0, FLOW_SCHEDULERS), (save_tiny_z_image, 2.0, FLOW_SCHEDULERS[:1])]


@pytest.mark.parametrize(("save", "guidance", "schedulers"), FLOWS)
def test_flow_bases_take_schedulers_of_diffusers(
    save: Any, guidance: float, schedulers: list[str], tmp_path: Path
) -> None:
    base = save(tmp_path / "base")
    world = base, {"a": write_adapter(tmp_path, base, "a", 0, targets=["to_q"])}
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if save is save_tiny_sd3 else {}
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(base, **absent)
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    for name in schedulers:
        changes = (
            {}
            if name.startswith("FlowMatch")
            else {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": own.config.shift}
        )
        over = {"methods": ["base"], "weights": [[1.0]]}
        config = scheduled(tmp_path / name, world, name, **over)
        ready = sweep(replace(config, base=BaseConfig(path=str(base), resolution=16)))
        pipe.scheduler = getattr(diffusers, name).from_config(own.config, **changes)
        wanted = made_by(pipe, ready, 16, guidance_scale=guidance)
        torch.testing.assert_close(latents(ready, 0, [0, 1, 2]), wanted, rtol=1e-5, atol=1e-5)
    over = {"methods": ["base"], "weights": [[1.0]]}
    config = replace(
        scheduled(tmp_path / "out", world, "UniPCMultistepScheduler", **over),
        base=BaseConfig(path=str(base), resolution=16),
    )
    scheduler: Any = sweep(config).runner.scheduled.make().scheduler
    found = {name: scheduler.config[name] for name in ("use_flow_sigmas", "prediction_type", "flow_shift")}
    assert found == {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": own.config.shift}
    with pytest.raises(ValueError, match="EulerDiscreteScheduler knows no flow matching"):
        sweep(replace(config, output=str(tmp_path / "no"), scheduler="EulerDiscreteScheduler"))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"scheduler": "EulerAncestral"},
            "'EulerAncestral' is no class of diffusers; near are .*EulerAncestralDiscreteScheduler",
        ),
        (
            {"methods": ["code"]},
            "code needs the distribution of each step .its candidates .* gives only the next latents",
        ),
        ({"methods": ["msdda"]}, "msdda needs the distribution of each step"),
        ({"methods": ["rgg"]}, "rgg needs the distribution of each step"),
        ({"scheduler": "", "scheduler_options": {"a": 1}}, "scheduler_options are given without a scheduler"),
    ],
)
def test_what_can_be_refused_without_a_library_is(
    over: dict[str, Any], message: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(scheduled(tmp_path / "out", world, "EulerDiscreteScheduler", **over))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("IPNDMScheduler", {}, "is not built from a noise schedule's betas"),
        ("RePaintScheduler", {}, "needs 'original_image', which a sweep does not have"),
        ("DDIMInverseScheduler", {}, "goes from a picture to noise"),
        ("EulerDiscreteScheduler", {"karras": True}, "scheduler_options names 'karras'; EulerDiscreteScheduler has"),
        ("FlowMatchEulerDiscreteScheduler", {}, "is not built from a noise schedule's betas"),
    ],
)
def test_a_scheduler_that_cannot_run_on_the_base_is_refused(
    name: str, options: dict[str, Any], message: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(scheduled(tmp_path / "out", world, name, scheduler_options=options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("draws", [lambda sample, _: torch.randn_like(sample), lambda sample, rows: sample * rows])
def test_noise_that_is_not_each_pictures_own_is_refused(
    draws: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = diffusers.EulerAncestralDiscreteScheduler
    step = kind.step

    def careless(self: Any, output: Any, timestep: Any, sample: torch.Tensor, **over: Any) -> Any:
        return (step(self, output, timestep, sample, **over)[0] + draws(sample, len(sample)),)

    monkeypatch.setattr(kind, "step", careless)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="draws noise that is not each picture's own"):
        sweep(scheduled(tmp_path / "out", world, kind.__name__))
    assert torch.equal(before, torch.get_rng_state())


def test_the_names_are_those_of_diffusers() -> None:
    names = scheduler_names()
    assert set(NOISE_SCHEDULERS) | set(FLOW_SCHEDULERS) <= set(names)
    assert all(hasattr(diffusers.schedulers, name) for name in NOISE_SCHEDULERS)
