"""Runs two training iterations of each algorithm on all processes of the launcher, and saves adapters and figures.

``accelerate launch ... two_processes.py BASE OUT ALGORITHM ...`` makes a folder for each algorithm in OUT. An algorithm's name
with ``+shard`` splits the base over the processes, and the run is watched as well, because the default settings watch it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusion_blend.training.config import BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.trainer import Trainer
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from training_runs import PROMPTS, redness, settings


def run(base: str, out: Path, wish: str, accelerator: Accelerator) -> None:
    name, _, option = wish.partition("+")
    out.mkdir(parents=True, exist_ok=True)
    share = 2 // accelerator.num_processes  # a single process takes twice the batch
    config = settings(
        out / "run",
        name,
        sampling={"steps": 4, "samples": 4 * share, "batch": 2},
        algorithm={"buffer": 100 * share, "updates": 2, "statistics_minimum": 2},
        optimizer={"accumulate": share, "learning_rate": 1e-3},
        value={"batch": 6 * share},
        run={"iterations": 2, "watch_every": int(option == "shard"), "watch_samples": 2},
    )
    model = DiffusersModel(
        load_base(BaseConfig(path=base, shard=option == "shard"), torch.device("cpu"), allow_download=False),
        config.adapter,
        0,
    )
    trainer = Trainer(config, model, {"redness": redness}, {}, PROMPTS, accelerator)
    trainer.run()
    if option == "shard":
        model.base.unet.reshard()  # FSDP2 leaves the root's own weights gathered after a pass that is not differentiated
    own = [value.to_local() if isinstance(value, DTensor) else value for value in model.base.unet.parameters()]
    numbers = {"held": sum(map(torch.numel, own)), "whole": sum(map(torch.numel, model.base.unet.parameters()))}
    (out / f"rank{accelerator.process_index}.json").write_text(json.dumps(numbers))
    parameters = {key: value.detach().clone() for key, value in model.trainable().items()}
    save_file(parameters, out / f"rank{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        (out / "history.json").write_text(json.dumps(trainer.state.history))


def main(base: str, out: str, *names: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for name in names:
        run(base, Path(out) / name, name, accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
