"""The adapters that come with the miniature do what their names say, on prompts and noise they were not trained with."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_blend.artifacts.workers import Worker
from diffusion_blend.evaluation.sweep.config import SweepConfig
from diffusion_blend.evaluation.sweep.prepare import prepare
from diffusion_blend.miniature.model import weights_folder
from diffusion_blend.training.config import BaseConfig, PromptConfig
from safetensors import safe_open

FILES = sorted((weights_folder().parent / "adapters").glob("*.safetensors"))
ALIGNMENT = weights_folder().parent / "alignment/alignment.safetensors"
PROMPTS = ("three green squares", "a red circle and a cyan triangle", "a blue square")
RELATIONS = ("a red circle left of a blue square", "a green triangle above a purple circle", "two cyan circles")
SEED = 20  # none of the trainings'


@functools.cache
def metadata(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as content:
        return content.metadata()


@pytest.mark.parametrize("file", [*FILES, ALIGNMENT], ids=lambda file: file.stem)
def test_it_raises_its_reward_over_the_base(tmp_path: Path, file: Path) -> None:
    name = file.stem
    assert metadata(file)["diffusion_blend.reward"] == name
    # The base is near the best alignment, so its gain is small beside the differences between pictures.
    prompts, images = ((*PROMPTS, *RELATIONS), 300) if file == ALIGNMENT else (PROMPTS, 48)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    config = SweepConfig(
        output=str(tmp_path / "sweep"),
        adapters={name: str(file)},
        rewards={name: f"diffusion_blend.miniature.rewards:{name}"},
        methods=["base", "blend"],
        weights=[[1.0]],
        images_per_point=images,
        steps=10,
        guidance_scale=1.0,
        batch=48,
        seed=SEED,
        measure_kl=False,
        save_images=0,
        base=BaseConfig(path="diffusion_blend.miniature.base:shipped"),
        prompts=PromptConfig(source=str(tmp_path / "prompts.txt")),
    )
    torch.set_num_threads(1)
    rows = prepare(config, Worker(torch.device("cpu"), True)).run()
    before, after = (np.array([row[name] for row in rows if row["method"] == m]) for m in ("base", "blend"))
    gain = after - before  # the same prompts and noise
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    print(f"{name}: {before.mean():.3f} -> {after.mean():.3f}, gain {gain.mean():.3f} +- {error:.3f}")
    assert gain.mean() > 3 * error
