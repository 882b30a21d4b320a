"""``diffusion-blend demo``: three adapters of the miniature world blended over the simplex, without a network."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ...artifacts.command_line import EARLIER, check_options, present_spelling, run_command
from ...artifacts.files import check_folder
from ...artifacts.settings_parser import SettingsParser
from ...miniature.reward_names import REWARD_NAMES, SHIPPED_BASE

RENAMED = {**EARLIER, "divisions": "grid", "images": "images_per_point"}
"""Earlier spellings of options, which are still accepted."""
FAVOURITES = ("brightness", "warmth", "colourfulness", "contrast", "softness", "compressibility")
METHODS = ("blend", "stochastic", "soup", "base")
WITH_STACKED = ("blend", "stacked", "soup", "base")
"""The methods where a group is there that was trained to be stacked. They take about as long as those without it."""
SHIPPED = Path(__file__).parents[2] / "miniature/weights/adapters"
"""The folder of the shipped adapters."""
STACKED = SHIPPED.with_name("stacked")
"""The folder of the shipped group that was trained to be stacked."""
PROMPTS = (
    "a red circle",
    "two yellow squares",
    "a green square and a blue circle",
    "a cyan triangle on the left",
    "a red triangle above a cyan circle",
    "three purple circles",
    "a blue square left of a yellow triangle",
    "a purple triangle and a green triangle",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    words = present_spelling(sys.argv[1:] if arguments is None else arguments, RENAMED)
    options = _parser().parse_args(words)

    def work() -> None:
        page = demonstrate(options)
        sys.stdout.write(
            f"\nThe page: {page.resolve()}\nOpen it in a browser. The pictures, tables and samples are in the same folder.\n"
        )

    return run_command("demo", work)


def _parser() -> SettingsParser:
    parser = SettingsParser(prog="diffusion-blend demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the results; goes on there (demo)")
    parser.add_argument("--rewards", nargs=3, choices=list(REWARD_NAMES), help="three of the shipped adapters to blend")
    parser.add_argument("--grid", type=int, default=4, help="steps along an edge of the triangle (4: 15 preferences)")
    parser.add_argument("--images_per_point", type=int, default=48, help="pictures a preference (48)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path | None, default=None, help="folder of a miniature model (the shipped one)")
    parser.add_argument(
        "--adapters", type=Path | None, default=None, help="folder of <reward>.safetensors (the shipped ones)"
    )
    parser.add_argument(
        "--stacked",
        type=Path | None,
        default=None,
        help="folder of <reward>.safetensors that were trained to be stacked (the shipped ones, beside the shipped adapters)",
    )
    return parser


def find_stacked(options: Namespace, rewards: Sequence[str]) -> dict[str, str]:
    """The files of a group that was trained to be stacked, by reward; empty where none are shipped for these rewards.

    Raises:
        ValueError: a folder was given, and a file is missing there.
    """
    folder = options.stacked or (STACKED if options.adapters is None else None)
    if folder is None:
        return {}
    files = {name: folder / f"{name}.safetensors" for name in rewards}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing and options.stacked:
        raise ValueError(
            f"no adapter for {', '.join(missing)} in {folder}: train the group with 'diffusion-blend miniature adapters "
            f"--stacked --output {folder} {' '.join(rewards)}'"
        )
    return {} if missing else {name: str(file) for name, file in files.items()}


def find_adapters(folder: Path, rewards: Sequence[str] | None) -> dict[str, Path]:
    """Three adapter files by reward: those wanted, or the first that are there.

    Raises:
        ValueError: one that is wanted is missing or named twice, or there are fewer than three.
    """
    if rewards and len(set(rewards)) < len(rewards):
        raise ValueError(f"--rewards {' '.join(rewards)} names a reward twice: give three different ones")
    found = {name: folder / f"{name}.safetensors" for name in rewards or FAVOURITES}
    missing = [name for name, file in found.items() if not file.is_file()]
    there = [name for name in found if name not in missing][:3]
    if (rewards and missing) or len(there) < 3:
        raise ValueError(
            f"no adapter for {', '.join(missing)} in {folder}: choose others with --rewards, or train them as "
            "docs/miniature.md says"
        )
    return {name: found[name] for name in there}


def demonstrate(options: Namespace) -> Path:
    """Run the demo's sweep and write its page.

    Returns:
        The HTML file.

    Raises:
        ValueError: no model, too few adapters, a bad number, or a folder that holds something else.
    """
    check_options(options, {"grid": 1, "images_per_point": 1, "seed": 0})
    from ...miniature.command import check_model

    check_model(options.model)
    check_folder(options.output)
    adapters = find_adapters(options.adapters or SHIPPED, options.rewards)
    stacked = find_stacked(options, list(adapters))
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ...artifacts.workers import Worker
    from ...miniature.model import load_pipeline
    from ...miniature.renderer import SIZE
    from ...training.models.bases import base_from_pipeline
    from ..sweep.prepare import prepare
    from ..sweep.report import write_report
    from .page import write_page

    options.output.mkdir(parents=True, exist_ok=True)
    prompts = options.output / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    for library in (diffusers_logging, transformers_logging):  # their bars and notes say nothing about the demo
        library.set_verbosity_error()
        library.disable_progress_bar()
    worker = Worker.of_environment()
    base = base_from_pipeline(load_pipeline(options.model), "miniature", SIZE, worker.device)
    sweep = prepare(_settings(options, adapters, stacked, prompts), worker, base)
    sys.stdout.write(
        f"Blending {', '.join(adapters)}: {len(sweep.points)} points of {options.images_per_point} pictures.\n"
    )
    rows = sweep.run()
    write_report(sweep, rows)
    return write_page(sweep, rows, options.output)


def _settings(options: Namespace, adapters: dict[str, Path], stacked: dict[str, str], prompts: Path) -> Any:
    from ...miniature.language import read
    from ...miniature.rewards import REWARDS
    from ...training.config import BaseConfig, PromptConfig
    from ..sweep.config import SweepConfig

    for prompt in PROMPTS:
        read(prompt)  # within the world's grammar
    trained = _sampling(next(iter(adapters.values())))
    return SweepConfig(
        output=str(options.output / "sweep"),
        adapters={name: str(file) for name, file in adapters.items()},
        rewards={name: f"{REWARDS[name].__module__}:{name}" for name in adapters},
        methods=list(WITH_STACKED if stacked else METHODS),
        stacked=stacked,
        grid=options.grid,
        images_per_point=options.images_per_point,
        steps=int(trained.get("steps", 25)),
        eta=float(trained.get("eta", 1.0)),
        guidance_scale=float(trained.get("guidance_scale", 3.0)),
        batch=32,
        seed=options.seed,
        measure_kl=False,
        reward_units="kl_weight",  # the rewards' own units cannot be compared
        save_images=len(PROMPTS),
        base=BaseConfig(path=SHIPPED_BASE if options.model is None else str(options.model)),
        prompts=PromptConfig(source=str(prompts)),
    )


def _sampling(adapter: Path) -> dict[str, Any]:
    """How the adapter's training made its pictures, from the file's metadata."""
    from safetensors import safe_open

    with safe_open(adapter, framework="pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata.get("diffusion_blend.config", "{}")).get("sampling", {})


if __name__ == "__main__":
    sys.exit(main())
