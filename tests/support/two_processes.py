"""Runs two training iterations of each algorithm on all processes of the launcher, and saves adapters and figures.

``accelerate launch ... two_processes.py BASE OUT ALGORITHM ...`` makes a folder for each algorithm in OUT. An algorithm's name
with ``+shard`` splits the base over the processes, and the run is watched as well, because the default settings watch it. A
name with ``+resume`` stops after an iteration and is resumed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusion_blend.training.config import BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.trainer import Trainer
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from training_runs import PROMPTS, redness, settings


def trainer_of(base: str, out: Path, name: str, option: str, accelerator: Accelerator, **run: Any) -> Trainer:
    share = 2 // accelerator.num_processes  # a single process takes twice the batch
    config = settings(
        out / "run",
        name,
        resume=bool(run.pop("resume", False)),
        sampling={"steps": 4, "samples": 4 * share, "batch": 2},
        algorithm={"buffer": 100 * share, "updates": 2, "statistics_minimum": 2},
        optimizer={"accumulate": share, "learning_rate": 1e-3},
        value={"batch": 6 * share},
        run={"watch_every": int(option == "shard"), "watch_samples": 2, **run},
    )
    model = DiffusersModel(
        load_base(BaseConfig(path=base, shard=option == "shard"), torch.device("cpu"), allow_download=False),
        config.adapter,
        0,
    )
    return Trainer(config, model, {"redness": redness}, {}, PROMPTS, accelerator)


def run(base: str, out: Path, wish: str, accelerator: Accelerator) -> None:
    name, _, option = wish.partition("+")
    out.mkdir(parents=True, exist_ok=True)
    if option == "resume":
        first = trainer_of(base, out, name, option, accelerator, iterations=1, save_every=1)
        torch.manual_seed(100 + accelerator.process_index)  # as after the draws of a reward of one's own
        first.run()
        torch.manual_seed(0)
    trainer = trainer_of(base, out, name, option, accelerator, iterations=2, resume=option == "resume")
    trainer.run()
    network = trainer.context.model.base.unet
    if option == "shard":
        network.reshard()  # FSDP2 leaves the root's own weights gathered after a pass that is not differentiated
    own = [value.to_local() if isinstance(value, DTensor) else value for value in network.parameters()]
    numbers = {"held": sum(map(torch.numel, own)), "whole": sum(map(torch.numel, network.parameters()))}
    numbers["drawn"] = torch.rand(1).item()
    (out / f"rank{accelerator.process_index}.json").write_text(json.dumps(numbers))
    parameters = {key: value.detach().clone() for key, value in trainer.context.model.trainable().items()}
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
