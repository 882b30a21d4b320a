"""The ``diffusion-blend`` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .artifacts.command_line import missing_library

COMMANDS = {
    "demo": (
        ".evaluation.demo.command",
        "the miniature world's adapters over the simplex: pictures, figures, one page",
    ),
    "train": (".training.command", "fine-tune a reward adapter (dpok, ddpo, grpo, nft, rwr, draft) and export it"),
    "score": (".rewards.command", "score images and prompts with rewards"),
    "taste": (".rewards.taste_command", "make a reward of the votes of a Preference Duel"),
    "miniature": (".miniature.command", "the miniature world that needs no download"),
    "sweep": (".evaluation.sweep.command", "compare methods over preference weights: tables, Pareto figures"),
    "pool": (".evaluation.sweep.pool_command", "sweeps of several trainings as one table"),
    "paper": (".evaluation.paper.command", "the experiments of the Diffusion Blend paper, from training to table"),
    "bake": (".pipelines.command", "the adapters of a preference as one LoRA file, for any diffusers base"),
    "evaluate": (".evaluation.gaussian.command", "studies in a world where the answer is known"),
}
"""Name -> module (relative to this package) with a ``main(arguments) -> int | None``, and one line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: subcommand and its arguments; None takes the process's own.

    Returns:
        Exit status: 0 done, 1 the subcommand failed, 2 there is no such subcommand or a library is missing.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        sys.stdout.write(f"diffusion-blend {__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0].lower(), COMMANDS, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"diffusion-blend: no command {words[0]!r}{hint}\n{_usage()}")
        return 2
    try:
        module = importlib.import_module(COMMANDS[words[0]][0], __package__)
        return module.main(words[1:]) or 0
    except ModuleNotFoundError as error:
        return missing_library(words[0], error)


def _usage() -> str:
    lines = [f"  {name:<10} {help_line}" for name, (_, help_line) in COMMANDS.items()]
    head = ["usage: diffusion-blend COMMAND ...", "       diffusion-blend --version", ""]
    return "\n".join([*head, *lines, "", "COMMAND --help says more.", ""])


if __name__ == "__main__":
    sys.exit(main())
