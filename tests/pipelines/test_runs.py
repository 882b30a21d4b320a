"""Draws of ``stochastic`` in runs of every kind: in proportion to the weights, and one for each picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
)
from diffusion_blend.blending.side_path import SidePath
from diffusion_blend.pipelines import BlendedPipeline, blend
from diffusion_blend.pipelines.steps import Steps, timestep_of
from PIL import Image
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from tiny_transformers import save_tiny_wan, tiny_z_image, z_image_prompt

SMALL = {"prompt": "a red cat", "height": 8, "width": 8, "output_type": "latent"}


def loaded(folder: Path, kind: Any = DiffusionPipeline, **more: Any) -> Any:
    pipe: Any = kind.from_pretrained(folder, local_files_only=True, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapters(network: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    layer = next(name for name, _ in network.named_modules() if name.endswith("to_q"))
    weight: Any = network.get_submodule(layer).weight
    down, up = torch.full((1, weight.shape[1]), 0.1), torch.full((weight.shape[0], 1), 0.1)
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    return {"a": tensors, "b": {key: -value for key, value in tensors.items()}}


class Drawn:
    """The adapters that the calls of a network had, 0 or 1 for each picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, ...]] = []
        gated = SidePath.gated

        def recorded(path: SidePath, row: Any, *more: Any) -> Any:
            self.rows.append(tuple(gates.index(1) for gates in row))
            return gated(path, row, *more)

        monkeypatch.setattr(SidePath, "gated", recorded)

    def taken(self) -> list[tuple[int, ...]]:
        rows, self.rows = self.rows, []
        return rows

    def counts(self) -> Counter[int]:
        return Counter(i for row in self.taken() for i in row)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    torch.set_num_threads(1)
    return Drawn(monkeypatch)


def make(pipe: Any, arguments: dict[str, Any], seed: int = 0) -> Any:
    network = getattr(pipe, "unet", None) or pipe.transformer
    blended = BlendedPipeline(pipe, adapters(network))
    return blended(**arguments, weights=[1, 1], method="stochastic", draw_seed=seed)


def test_draws_are_in_proportion_where_a_run_has_fewer_steps_than_asked_for(tmp_path: Path, drawn: Drawn) -> None:
    """Guidance takes two rows of one call, so each step is one call: of 8 steps each adapter has 4."""
    pipe = loaded(save_tiny_sd(tmp_path / "sd"))
    image = Image.new("RGB", (8, 8), (200, 10, 10))
    small = {"prompt": "a red cat", "image": image, "strength": 0.4, "num_inference_steps": 20, "output_type": "latent"}
    half = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    half.set_progress_bar_config(disable=True)
    for scheduler in (type(pipe.scheduler), PNDMScheduler):  # neither knows where its run begins
        half.scheduler = scheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
        for seed in range(3):
            make(half, small, seed)
            counts = drawn.counts()
            assert sum(counts.values()) in (8, 9) and abs(counts[0] - counts[1]) <= 1, (scheduler, counts)
    xl = loaded(save_tiny_sdxl(tmp_path / "sdxl"))
    for run in (
        {"num_inference_steps": 20, "denoising_end": 0.4},
        {"timesteps": [900, 700, 500, 300, 200, 100, 50, 1]},
    ):
        for seed in range(3):
            make(xl, SMALL | run, seed)
            assert drawn.counts() == {0: 4, 1: 4}, run


def test_a_scheduler_of_second_order_has_one_draw_for_both_calls_of_a_step(tmp_path: Path, drawn: Drawn) -> None:
    pipe = loaded(save_tiny_sd(tmp_path / "sd", prediction_type="epsilon"))
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    for seed in range(3):
        make(pipe, SMALL | {"num_inference_steps": 6}, seed)
        rows = drawn.taken()
        assert len(rows) == 11
        steps = [rows[0], *rows[1::2]]
        assert rows[1::2] == rows[2::2] and Counter(steps) == {(0,): 3, (1,): 3}


def test_one_block_around_several_runs_starts_over(tmp_path: Path, drawn: Drawn) -> None:
    pipe = loaded(save_tiny_sd(tmp_path / "sd"))
    with blend(pipe.unet, adapters(pipe.unet), [1, 1], method="stochastic", steps=6):
        pipe(**SMALL, num_inference_steps=6)
        first = drawn.taken()
        pipe(**SMALL, num_inference_steps=6)
        assert drawn.taken() == first and Counter(first) == {(0,): 3, (1,): 3}
    network = tiny_z_image()
    with blend(network.transformer, adapters(network.transformer), [1, 1], method="stochastic", steps=4):
        for _ in range(2):  # its timesteps rise
            network(**z_image_prompt(1), num_inference_steps=4, output_type="latent")
            assert drawn.counts() == {0: 2, 1: 2}


def test_a_given_first_frame_does_not_stop_the_draws(tmp_path: Path, drawn: Drawn, monkeypatch: Any) -> None:
    """Wan 2.2 TI2V: a timestep for each token, 0 for those of the given frame."""
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.prompt_clean", lambda text: text)
    parts = loaded(save_tiny_wan(tmp_path / "wan"), WanPipeline).components
    shared = {name: parts[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    pipe = WanImageToVideoPipeline(**shared, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (16, 16), (200, 10, 10))
    video = {"image": image, "prompt": "a dog", "height": 16, "width": 16, "num_frames": 5, "guidance_scale": 3.0}
    make(pipe, video | {"negative_prompt": "x", "num_inference_steps": 6, "output_type": "latent"})
    rows = drawn.taken()
    assert Counter(rows) == {(0,): 6, (1,): 6}
    assert rows[::2] == rows[1::2]  # both calls of guidance


def test_each_video_of_a_prompt_has_its_own_draw(tmp_path: Path, drawn: Drawn) -> None:
    pipe = loaded(save_tiny_wan(tmp_path / "wan"), WanPipeline)
    video = {"prompt": "a dog", "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 6}
    make(pipe, video | {"guidance_scale": 1.0, "num_videos_per_prompt": 3, "output_type": "latent"})
    rows = [row if len(row) == 3 else row * 3 for row in drawn.taken()]  # equal draws are one row
    assert len(rows) == 6 and any(len(set(row)) > 1 for row in rows)
    assert all(sum(row[video] for row in rows) == 3 for video in range(3))


def test_steps_by_hand() -> None:
    def follow(timesteps: list[float]) -> list[tuple[int, int]]:
        steps, seen = Steps(lambda first: 3 if first == 900 else 2), []
        for timestep in timesteps:
            steps.see(timestep)
            seen.append((steps.index, steps.count))
        return seen

    assert follow([900, 900, 500, 100, 100]) == [(0, 3), (0, 3), (1, 3), (2, 3), (2, 3)]
    assert follow([900, 500, 100, 800, 300]) == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    assert follow([0.1, 0.5, 0.9, 0.1, 0.5]) == [(0, 2), (1, 2), (2, 3), (0, 2), (1, 2)]
    # KDPM2AncestralDiscreteScheduler: rounding, and no new run
    assert [index for index, _ in follow([999.0, 864.8, 865.0, 689.4, 689.0])] == [0, 1, 2, 3, 4]
    token = torch.tensor([[0.0, 700.0, 700.0]])
    assert timestep_of({"timestep": token}) < timestep_of({"timestep": torch.tensor([[0.0, 701.0, 701.0]])})
    third = torch.tensor([1 / 3], dtype=torch.float32)
    assert len({timestep_of({"t": third.expand(rows)}) for rows in range(1, 50)}) == 1
    with pytest.raises(ValueError, match="without a timestep"):
        timestep_of({})
