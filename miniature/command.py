"""``diffusion-blend miniature``: render pictures of the world, train its base model, check a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands ``train``, ``check`` and ``render``; the exit status is returned."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    # The machine's own paths are no part of the record: the folder is named by its last part.
    recorded = [Path(word).name if index and arguments[index - 1] == "--out" else word for index, word in enumerate(arguments)]
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


if __name__ == "__main__":
    sys.exit(main())
