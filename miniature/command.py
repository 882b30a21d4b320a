"""``diffusion-blend miniature``: render pictures of the world, train its base model, check a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .adapters import SHIPPED, read_mixture, train_adapters


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands ``train``, ``check`` and ``render``; the exit status is returned."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    # The machine's own paths are no part of the record: the folder is named by its last part.
    recorded = [
        Path(word).name if index and arguments[index - 1] == "--out" else word for index, word in enumerate(arguments)
    ]
    options.command_line = " ".join(["diffusion-blend", "miniature", *recorded])
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffusion-blend miniature", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train the base model from scratch; goes on where it stopped")
    train.add_argument("--out", type=Path, required=True, help="folder of the run; the model lands in its model/")
    train.add_argument("--steps", type=int, default=5000, help="optimiser steps in all (5000)")
    train.add_argument("--seed", type=int, default=0, help="of weights, pictures and noise (0)")
    train.add_argument("--batch", type=int, default=64, help="pictures a step (64)")
    train.add_argument("--compile", action="store_true", help="use torch.compile: about 1.8 times as fast on a CPU")
    train.add_argument("--threads", type=int, default=0, help="CPU threads (torch's own choice)")
    train.set_defaults(run=_train)
    check = commands.add_parser("check", help="accuracy of a model on trained and held-out combinations")
    check.add_argument("--model", type=Path, default=None, help="folder of a model (the shipped one)")
    check.add_argument("--count", type=int, default=128, help="pictures of each kind (128)")
    render = commands.add_parser("render", help="write a grid of pictures: rendered, or made by a model")
    render.add_argument("--out", type=Path, required=True, help="PNG file")
    render.add_argument("--model", type=Path, default=None, help="folder of a model; without it the renderer draws")
    render.add_argument("--shipped", action="store_true", help="use the shipped model")
    render.add_argument("--prompt", action="append", help="a row of the grid; several may be given")
    render.add_argument("--columns", type=int, default=8, help="pictures of each prompt (8)")
    for command in (check, render):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--steps", type=int, default=25, help="DDIM steps (25)")
        command.add_argument("--guidance", type=float, default=3.0, help="CFG (3)")
        command.add_argument("--threads", type=int, default=0, help="CPU threads (torch's own choice)")
    prompts = commands.add_parser("prompts", help="write training prompts, one per line, for diffusion-blend train")
    prompts.add_argument("--out", type=Path, required=True, help="text file, for --prompts.source")
    prompts.add_argument("--count", type=int, default=48, help="how many different ones (48)")
    prompts.add_argument("--seed", type=int, default=0)
    prompts.set_defaults(run=_prompts)
    adapters = commands.add_parser("adapters", help="train the shipped adapters again, or oracles of mixed rewards")
    adapters.add_argument("--out", type=Path, required=True, help="folder of the runs; NAME.safetensors land in it")
    adapters.add_argument(
        "mixtures",
        nargs="*",
        default=list(SHIPPED),
        help="like softness, or softness:1,colourfulness:3 (the shipped ones)",
    )
    adapters.add_argument("--seed", type=int, default=0, help="of the sampling and the training (0)")
    adapters.set_defaults(run=_adapters)
    check.set_defaults(run=_check)
    render.set_defaults(run=_render)
    return parser


def _train(options: argparse.Namespace) -> int:
    from .learning import LearningConfig, learn

    config = LearningConfig(
        out=options.out,
        steps=options.steps,
        seed=options.seed,
        batch=options.batch,
        compile=options.compile,
        threads=options.threads,
    )
    folder = learn(config, options.command_line)
    sys.stdout.write(f"model: {folder}\n")
    return 0


def _adapters(options: argparse.Namespace) -> int:
    try:
        mixtures = [read_mixture(text) for text in options.mixtures]
        files = train_adapters(mixtures, options.out, ["--run.seed", str(options.seed)])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"diffusion-blend miniature adapters: {error}\n")
        return 1
    for file in files:
        sys.stdout.write(f"{file}\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from .checking import Sampling, check
    from .model import load_pipeline

    _use_threads(options.threads)
    rows = check(
        load_pipeline(options.model), options.count, options.seed, Sampling(options.steps, 1.0, options.guidance)
    )
    sys.stdout.write(f"seed {options.seed}, {options.steps} DDIM steps, eta 1, guidance {options.guidance:g}\n\n")
    sys.stdout.write(
        "| combinations | kind | pictures | exact | 95 % interval | right things | mean grade |\n|" + "---|" * 7
    )
    for row in rows:
        sys.stdout.write(
            f"\n| {row['combinations']} | {row['kind']} | {row['pictures']} | {row['exact']:.3f} "
            f"| {row['low']:.3f} - {row['high']:.3f} | {row['right things']:.3f} | {row['grade']:.3f} |"
        )
    sys.stdout.write("\n")
    return 0


def _prompts(options: argparse.Namespace) -> int:
    import numpy as np

    from .language import sample, write

    generator = np.random.default_rng(options.seed)
    chosen: dict[str, None] = {}
    while len(chosen) < options.count:
        chosen[write(sample(generator))] = None
    options.out.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.out}: {len(chosen)} prompts, none of them held out\n")
    return 0


EXAMPLES = (
    "a red circle",
    "a cyan triangle on the left",
    "two yellow squares",
    "three purple circles",
    "a green square and a blue circle",
    "a red triangle above a cyan circle",
    "a blue square left of a yellow triangle",
)


def _render(options: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from PIL import Image

    from .checking import Sampling, generate
    from .language import read
    from .model import load_pipeline
    from .renderer import render, sample_scene
    from .sizes import SIZE

    _use_threads(options.threads)
    rows = options.prompt or list(EXAMPLES)
    prompts = [prompt for prompt in rows for _ in range(options.columns)]
    if options.model is None and not options.shipped:
        choice = np.random.default_rng(options.seed)
        scenes = [sample_scene(read(prompt), choice) for prompt in prompts]
        pictures = render(scenes, torch.Generator().manual_seed(options.seed))
    else:
        settings = Sampling(options.steps, 1.0, options.guidance)
        pictures = generate(load_pipeline(options.model), prompts, options.seed, settings)
    # [R * C, 3, H, W] -> [R * H, C * W, 3]
    grid = pictures.view(len(rows), options.columns, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2)
    pixels = (grid.reshape(len(rows) * SIZE, options.columns * SIZE, 3) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.numpy())
    image.resize((image.width * 3, image.height * 3), Image.Resampling.NEAREST).save(options.out)
    sys.stdout.write(f"{options.out}: one row for each of {', '.join(rows)}\n")
    return 0


def _use_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
