"""``diffusion-blend bake``: the adapters of a preference as one LoRA file, for any diffusers base."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ..artifacts.command_line import check_options, run_command
from ..artifacts.files import check_folder, find_file, write_once
from ..artifacts.settings_parser import SettingsParser
from ..blending.file_names import CROSS_END

if TYPE_CHECKING:
    from .trajectories import Settings

PRECISIONS = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Bake the adapters, print the error that is left, and return the exit status."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run_command("bake", lambda: _bake(options))


def _parser() -> SettingsParser:
    parser = SettingsParser(prog="diffusion-blend bake", description=__doc__)
    parser.add_argument(
        "--base", type=str, required=True, help="folder of a diffusers base; merge reads no weights of it"
    )
    parser.add_argument("--adapters", type=str, nargs="+", required=True, help="LoRA files for this base")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="merge and distil: the preference, one weight for each file"
    )
    parser.add_argument(
        "--kl_scale", type=float, default=1.0, help="0 is the base, 1 the adapters, above 1 exaggerates"
    )
    parser.add_argument(
        "--rank",
        type=int,
        default=0,
        help="of every layer; 0 is the sum of the adapters' ranks, which is exact for merge",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the new .safetensors file; an existing one is refused"
    )
    parser.add_argument(
        "--method",
        choices=("merge", "distil", "cross"),
        default="merge",
        help="merge: the sum of the adapters' weights (the soup). distil: one LoRA fitted to the blend's predictions. "
        "cross: one more LoRA for each pair, so that every preference comes near to the blend in one call",
    )
    _add_fit(parser)
    return parser


def _add_fit(parser: SettingsParser) -> None:
    """The options of methods that run the base."""
    parser.add_argument("--prompts", type=str, default="", help="distil, cross: text file with one prompt a line")
    parser.add_argument("--steps", type=int, default=20, help="distil, cross: denoising steps of a trajectory")
    parser.add_argument(
        "--trajectories",
        type=int,
        default=16,
        help="distil, cross: runs of the blend to fit to; a quarter more are held out",
    )
    parser.add_argument("--iterations", type=int, default=400, help="distil, cross: optimizer steps")
    parser.add_argument("--batch", type=int, default=4, help="distil, cross: network calls for each optimizer step")
    parser.add_argument(
        "--learning_rate", type=float, default=3e-4, help="distil, cross: highest of Adam, falls to 0 as a cosine"
    )
    parser.add_argument("--seed", type=int, default=0, help="distil, cross: of the noise and of the order of the calls")
    parser.add_argument(
        "--guidance", type=float, default=None, help="distil, cross: guidance scale; default the pipeline's"
    )
    parser.add_argument(
        "--eta", type=float, default=None, help="distil, cross: noise of DDIM's steps, 0 to 1; default the pipeline's"
    )
    parser.add_argument(
        "--height", type=int, default=None, help="distil, cross: of the pictures; default the pipeline's"
    )
    parser.add_argument(
        "--width", type=int, default=None, help="distil, cross: of the pictures; default the pipeline's"
    )
    parser.add_argument(
        "--device", type=str, default="auto", help="distil, cross: such as cuda; auto is a GPU if there is one"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="distil, cross: of the base")


def _bake(options: Namespace) -> None:
    check_options(options, {"rank": 0, "steps": 1, "trajectories": 1, "iterations": 1, "batch": 1, "seed": 0})
    output: Path = options.output
    if output.suffix != ".safetensors":
        raise ValueError(f"output is {str(output)!r}: the file's name must end in .safetensors")
    if output.exists():
        raise ValueError(f"{output} exists: choose another name, or remove the file first")
    check_folder(output.parent)
    if options.weights is None and options.method != "cross":
        raise ValueError(f"--method {options.method} needs --weights: the preference, one weight for each file")
    {"merge": _merge, "distil": _distil, "cross": _cross}[options.method](options)


def _merge(options: Namespace) -> None:
    from .baking import bake_files

    if options.prompts:
        raise ValueError("--prompts is for distil and cross: merge sums the weights and runs no model")
    baked = bake_files(options.base, options.adapters, options.weights, options.kl_scale, options.rank)
    _write(options.output, baked.content())
    for layer, error in sorted(baked.errors.items(), key=lambda entry: -entry[1]):
        sys.stdout.write(f"{error:8.2%}  {layer}\n")
    found = f"the error left is {baked.error:.2%} of the update" if baked.errors else "the sum is exact"
    sys.stdout.write(f"{options.output}: {found}\n")


def _settings(options: Namespace) -> Settings:
    from .trajectories import Settings

    prompts = _prompts(options)
    names = ("steps", "trajectories", "iterations", "batch", "learning_rate", "seed", "guidance", "height", "width")
    return Settings(prompts, **{name: getattr(options, name) for name in (*names, "device", "precision", "eta")})


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _cross(options: Namespace) -> None:
    from ..artifacts.progress import Progress
    from .crossing import cross_files

    if options.weights is not None or options.kl_scale != 1:
        raise ValueError("--method cross is for every preference at KL scale 1: leave out --weights and --kl_scale")
    if not options.output.name.endswith(CROSS_END):
        raise ValueError(f"output is {str(options.output)!r}: the files of cross must end in {CROSS_END}")
    pairs = list(combinations(range(1, len(options.adapters) + 1), 2))
    stem = str(options.output).removesuffix(CROSS_END)
    outputs = [Path(f"{stem}-{i}-{j}{CROSS_END}") for i, j in pairs] if len(pairs) > 1 else [options.output]
    taken = [str(output) for output in outputs if output.exists()]
    if taken:
        raise ValueError(f"{', '.join(taken)} exists: choose another name, or remove the file first")
    settings = _settings(options)
    total = len(pairs) * (settings.trajectories + settings.held_out + settings.iterations)
    with Progress(total, "step", shown=True) as progress:
        made = cross_files(options.base, options.adapters, options.rank, settings, say, progress.add)
    for output, (baked, fitted) in zip(outputs, made, strict=True):
        _write(output, baked.content())
        share = (
            f"{fitted.error / fitted.start:.1%} of the soup's error to the blend is left"
            if fitted.improved
            else (
                "the fit did not come nearer to the blend than the soup, so this file changes nothing. Try more iterations or "
                "another learning rate"
            )
        )
        say(f"{output}: {share}")


def _distil(options: Namespace) -> None:
    from ..artifacts.progress import Progress
    from .distillation import distil_files

    settings = _settings(options)
    total = settings.trajectories + settings.held_out + settings.iterations
    with Progress(total, "step", shown=True) as progress:
        baked, fitted = distil_files(
            options.base, options.adapters, options.weights, options.kl_scale, options.rank, settings, say, progress.add
        )
    _write(options.output, baked.content())
    if fitted.improved:
        say(f"{options.output}: error to the blend {fitted.error:.4f}, {fitted.error / fitted.start:.1%} of the soup's")
    else:
        say(
            f"{options.output}: the fit did not come nearer to the blend than the soup ({fitted.start:.4f}), so the file "
            "holds the soup. Try more iterations or another learning rate."
        )


def _prompts(options: Namespace) -> list[str]:
    """Read the prompts, and check the other settings of a fit, before a base is loaded."""
    if not options.prompts:
        raise ValueError(
            f"--method {options.method} runs the blend on prompts: give a text file with one prompt a line as --prompts"
        )
    if not options.learning_rate > 0:
        raise ValueError(f"--learning_rate is {options.learning_rate}: it must be a number above 0")
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"--eta is {options.eta}: it must be from 0 to 1")
    for name in ("height", "width"):
        size = getattr(options, name)
        if size is not None and (size < 8 or size % 8):
            raise ValueError(f"--{name} is {size}: it must be a multiple of 8, in pixels")
    try:
        text = find_file(options.prompts).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts: {options.prompts} cannot be read as text ({error})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts: {options.prompts} holds no prompt")
    return prompts


def _write(output: Path, content: bytes) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    if not write_once(output, content):
        raise ValueError(f"{output} was made by another program in the meantime: choose another name")
