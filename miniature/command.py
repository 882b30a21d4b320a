"""``diffusion-blend miniature``: render pictures of the world, train its base model and adapters, check a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from ..artifacts.command_line import EARLIER, check_options, present_spelling, run_command
from ..artifacts.files import check_file, check_folder
from ..artifacts.settings_parser import SettingsParser
from .adapters import ADAPTER, SHIPPED, WITHOUT_GRADIENT, read_mixture, train_adapters, train_group
from .options import PARSERS

RENAMED = {**EARLIER, "guidance": "guidance_scale"}
"""Earlier spellings of options, which are still accepted."""
MINIMUM = {
    "steps": 1,
    "count": 1,
    "columns": 1,
    "batch": 1,
    "threads": 0,
    "seed": 0,
    "mean_of": 0,
    "warm_up": 0,
    "layout_steps": 0,
}
"""The smallest value of each whole number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    arguments = present_spelling(sys.argv[1:] if argv is None else argv, RENAMED)
    chosen = _parser().parse_args(arguments)
    options = chosen[chosen.subcommand]
    # Paths of this machine do not belong into the record: folders are named by their last part.
    recorded = [
        Path(word).name if index and arguments[index - 1] in ("--output", "--start") else word
        for index, word in enumerate(arguments)
    ]
    options.command_line = " ".join(["diffusion-blend", "miniature", *recorded])

    def work() -> None:
        check_options(options, MINIMUM)
        _COMMANDS[chosen.subcommand](options)

    return run_command(f"miniature {chosen.subcommand}", work)


def _parser() -> SettingsParser:
    parser = SettingsParser(prog="diffusion-blend miniature", description=__doc__)
    commands = parser.add_subcommands(required=True)
    for name, build in PARSERS.items():
        command = build()
        commands.add_subcommand(name, command, help=command.description)
    return parser


def _train(options: Namespace) -> None:
    for name in ("high_noise", "pure_noise"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"--{name} is {getattr(options, name)}: it is a share, so give a number from 0 to 1")
    if not 0 < options.learning_rate < 1:
        raise ValueError(f"--learning_rate is {options.learning_rate}: give a number between 0 and 1, like 1e-3")
    if not all(0 <= share < math.inf for share in options.shares) or sum(options.shares) <= 0:
        raise ValueError(f"--shares is {options.shares}: give weights of 0 or more, of which one is above 0")
    if options.layout_steps and not options.mean_of:
        raise ValueError(f"--layout_steps is {options.layout_steps}, but there are no mean pictures: give --mean_of 32")
    check_folder(options.output)
    check_model(options.start)
    from .learning import LearningConfig, learn

    config = LearningConfig(
        out=options.output,
        steps=options.steps,
        seed=options.seed,
        start=options.start,
        batch=options.batch,
        high_noise=options.high_noise,
        pure_noise=options.pure_noise,
        mean_of=options.mean_of,
        layout_steps=options.layout_steps,
        shares=tuple(options.shares),
        learning_rate=options.learning_rate,
        warm_up=options.warm_up,
        snr_floor=options.snr_floor,
        compile=options.compile,
        threads=options.threads,
    )
    folder = learn(config, options.command_line)
    sys.stdout.write(f"model: {folder}\n")


def _adapters(options: Namespace) -> None:
    mixtures = [read_mixture(text) for text in options.mixtures or SHIPPED]
    mixed = [text for text, mixture in zip(options.mixtures, mixtures, strict=False) if len(mixture) > 1]
    if options.stacked and mixed:
        raise ValueError(
            f"--stacked trains an adapter for each reward, so {mixed[0]!r} cannot be one: give single rewards"
        )
    check_folder(options.output)
    words = ["--run.seed", str(options.seed)]
    settings = (ADAPTER, WITHOUT_GRADIENT) if options.without_gradients else (ADAPTER,)
    if options.stacked:
        files = train_group([next(iter(mixture)) for mixture in mixtures], options.output, words, settings)
    else:
        files = train_adapters(mixtures, options.output, words, settings)
    for file in files:
        sys.stdout.write(f"{file}\n")


def _set2(options: Namespace) -> None:
    from .set2 import chosen_parts, make, parts

    chosen = chosen_parts(parts(options.output, options.seed), options.only)
    if options.list:
        sys.stdout.write("".join(f"{part.name}: {part.content}\n" for part in chosen))
        return
    check_folder(options.output)
    make(chosen)


def _check(options: Namespace) -> None:
    check_model(options.model)
    if options.adapter is not None and not options.adapter.is_file():
        raise ValueError(f"--adapter {options.adapter}: there is no such file")
    if options.adapter is not None and options.adapter.suffix != ".safetensors":
        raise ValueError(f"--adapter {options.adapter}: only .safetensors files are read")
    from .checking import Sampling, check
    from .model import load_pipeline

    _use_threads(options.threads)
    pipeline = load_pipeline(options.model)
    if options.adapter is not None:
        pipeline.load_lora_weights(str(options.adapter.parent), weight_name=options.adapter.name)
        if not pipeline.get_active_adapters():
            raise ValueError(f"--adapter {options.adapter}: the file holds no LoRA of this model")
    rows = check(pipeline, options.count, options.seed, Sampling(options.steps, 1.0, options.guidance_scale))
    sys.stdout.write(f"seed {options.seed}, {options.steps} DDIM steps, eta 1, guidance {options.guidance_scale:g}\n\n")
    sys.stdout.write(
        "| combinations | kind | pictures | exact | 95 % interval | right things | mean grade |\n|" + "---|" * 7
    )
    for row in rows:
        sys.stdout.write(
            f"\n| {row['combinations']} | {row['kind']} | {row['pictures']} | {row['exact']:.3f} "
            f"| {row['low']:.3f} - {row['high']:.3f} | {row['right things']:.3f} | {row['grade']:.3f} |"
        )
    sys.stdout.write("\n")


def _check_replaced(output: Path) -> None:
    """Refuse to replace a file that holds something else than prompts of this world."""
    from .language import read

    try:
        for line in output.read_text(encoding="utf-8").splitlines() if output.exists() else ():
            read(line)
    except ValueError as error:
        raise ValueError(
            f"{output} exists and holds no prompts of this world: choose another name, or remove the file first"
        ) from error


def _prompts(options: Namespace) -> None:
    import numpy as np

    from .language import sample, training_descriptions, write

    most = len(training_descriptions())
    if options.count > most:
        raise ValueError(f"--count is {options.count}: this world has {most} training prompts, so give at most {most}")
    check_file(options.output)
    _check_replaced(options.output)
    generator = np.random.default_rng(options.seed)
    chosen: dict[str, None] = {}
    while len(chosen) < options.count:
        chosen[write(sample(generator))] = None
    options.output.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.output}: {len(chosen)} prompts, none of them held out\n")


EXAMPLES = (
    "a red circle",
    "a cyan triangle on the left",
    "two yellow squares",
    "three purple circles",
    "a green square and a blue circle",
    "a red triangle above a cyan circle",
    "a blue square left of a yellow triangle",
)


def _render(options: Namespace) -> None:
    from .language import read

    rows = options.prompt or list(EXAMPLES)
    for prompt in rows:
        read(prompt)  # refuses a prompt outside the grammar
    check_model(options.model)
    if Path(options.output).suffix.lower() != ".png":
        raise ValueError(f"--output is {options.output}: the grid is a PNG file, so give a name that ends in .png")
    check_file(options.output)
    import numpy as np
    import torch
    from PIL import Image

    from .checking import Sampling, generate
    from .model import load_pipeline
    from .renderer import render, sample_scene
    from .sizes import SIZE

    _use_threads(options.threads)
    prompts = [prompt for prompt in rows for _ in range(options.columns)]
    if options.model is None and not options.shipped:
        choice = np.random.default_rng(options.seed)
        scenes = [sample_scene(read(prompt), choice) for prompt in prompts]
        pictures = render(scenes, torch.Generator().manual_seed(options.seed))
    else:
        settings = Sampling(options.steps, 1.0, options.guidance_scale)
        pictures = generate(load_pipeline(options.model), prompts, options.seed, settings)
    # [R * C, 3, H, W] -> [R * H, C * W, 3]
    grid = pictures.view(len(rows), options.columns, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2)
    pixels = (grid.reshape(len(rows) * SIZE, options.columns * SIZE, 3) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.numpy())
    image.resize((image.width * 3, image.height * 3), Image.Resampling.NEAREST).save(options.output)
    sys.stdout.write(f"{options.output}: one row for each of {', '.join(rows)}\n")


def check_model(folder: Path | None) -> None:
    """Check that a folder holds a model, before torch is imported; None is the shipped one.

    Raises:
        ValueError: there is no model in the folder.
    """
    if folder is not None and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"No miniature model in {folder}: train one with 'diffusion-blend miniature train --output {folder}'."
        )


def _use_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


_COMMANDS = {
    "train": _train,
    "check": _check,
    "render": _render,
    "prompts": _prompts,
    "adapters": _adapters,
    "set2": _set2,
}


if __name__ == "__main__":
    sys.exit(main())
